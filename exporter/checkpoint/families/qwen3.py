"""Qwen3: per-head RMS normalization of queries and keys, explicit head_dim, windows as in Qwen2."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder
from exporter.checkpoint.families.qwen2 import upper_layer_windows
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.decoder.spec import DecoderSpec, NormSpec


def decoder_spec(config: Config) -> DecoderSpec:
    return dense_decoder(config, "qwen3", attention_traits(config))


def attention_traits(config: Config) -> DenseTraits:
    bias = config.flag("attention_bias", False)
    return DenseTraits(
        upper_layer_windows(config),
        query_key_norm=NormSpec(config.number("rms_norm_eps", 1e-6)),
        head_dim=128,
        query_key_value_bias=bias,
        output_bias=bias,
    )


PUBLISHED = Published(
    "Qwen3-0.6B",
    {
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    596_049_920,
)
FAMILIES.add("qwen3", Family("qwen3", decoder_spec, PUBLISHED, text_parts=("qwen3_vl_text",)))
