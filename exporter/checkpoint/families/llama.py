"""Llama 2 and 3.x, TinyLlama, SmolLM2: full attention, optional biases, rotary scaling."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention
from exporter.checkpoint.family import FAMILIES, Family
from exporter.decoder.spec import DecoderSpec


def decoder_spec(config: Config) -> DecoderSpec:
    attention_bias = config.flag("attention_bias", False)
    traits = DenseTraits(
        full_attention(config),
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=config.flag("mlp_bias", False),
        kv_heads=config.integer("num_attention_heads"),
    )
    return dense_decoder(config, "llama", traits)


FAMILIES.add("llama", Family("llama", decoder_spec))
