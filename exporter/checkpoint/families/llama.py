"""Llama 2 and 3.x, TinyLlama, SmolLM2: full attention, optional biases, rotary scaling."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.family import FAMILIES, DenseTraits, Family, dense_decoder, layer_count, llama_tensor_name
from exporter.decoder.spec import DecoderSpec


def decoder_spec(config: Config) -> DecoderSpec:
    attention_bias = config.flag("attention_bias", False)
    traits = DenseTraits(
        windows=(None,) * layer_count(config),
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=config.flag("mlp_bias", False),
        kv_heads_default_to_heads=True,
    )
    return dense_decoder(config, "llama", traits)


FAMILIES.add("llama", Family("llama", decoder_spec, llama_tensor_name))
