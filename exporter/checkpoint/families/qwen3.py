"""Qwen3: per-head RMS normalization of queries and keys, explicit head_dim, windows as in Qwen2."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder
from exporter.checkpoint.families.qwen2 import upper_layer_windows
from exporter.checkpoint.family import FAMILIES, Family
from exporter.decoder.spec import DecoderSpec, NormSpec


def decoder_spec(config: Config) -> DecoderSpec:
    bias = config.flag("attention_bias", False)
    traits = DenseTraits(
        upper_layer_windows(config),
        query_key_norm=NormSpec(config.number("rms_norm_eps", 1e-6)),
        head_dim=128,
        query_key_value_bias=bias,
        output_bias=bias,
    )
    return dense_decoder(config, "qwen3", traits)


FAMILIES.add("qwen3", Family("qwen3", decoder_spec))
