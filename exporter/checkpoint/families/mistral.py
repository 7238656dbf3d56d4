"""Mistral 7B and its kin: `sliding_window`, when set, bounds every layer."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, layer_count, windows_from_layer_types
from exporter.checkpoint.family import FAMILIES, Family
from exporter.decoder.spec import DecoderSpec


def decoder_spec(config: Config) -> DecoderSpec:
    absent = "sliding_window" not in config.values
    default = (4096 if absent else config.optional_integer("sliding_window"),) * layer_count(config)
    return dense_decoder(config, "mistral", DenseTraits(windows_from_layer_types(config, default)))


FAMILIES.add("mistral", Family("mistral", decoder_spec))
