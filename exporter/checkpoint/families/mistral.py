"""Mistral 7B and its kin: `sliding_window`, when set, bounds every layer."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.family import (
    FAMILIES,
    DenseTraits,
    Family,
    dense_decoder,
    layer_count,
    llama_tensor_name,
    windows_from_layer_types,
)
from exporter.decoder.spec import DecoderSpec


def decoder_spec(config: Config) -> DecoderSpec:
    absent = "sliding_window" not in config.values
    default = (4096 if absent else config.optional_integer("sliding_window"),) * layer_count(config)
    return dense_decoder(config, "mistral", DenseTraits(windows_from_layer_types(config, default)))


FAMILIES.add("mistral", Family("mistral", decoder_spec, llama_tensor_name))
