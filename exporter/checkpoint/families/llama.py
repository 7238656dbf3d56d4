"""Llama 2 and 3.x, TinyLlama, SmolLM2: full attention, optional biases, rotary scaling."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention
from exporter.checkpoint.family import FAMILIES, Family, Published
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


PUBLISHED = Published(
    "Llama-3.2-1B",
    {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
    },
    1_235_814_400,
)
FAMILIES.add("llama", Family("llama", decoder_spec, PUBLISHED))
