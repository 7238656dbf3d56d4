"""Mistral 7B and its kin: `sliding_window`, when set, bounds every layer."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, layer_count, windows_from_layer_types
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.decoder.spec import DecoderSpec


def decoder_spec(config: Config) -> DecoderSpec:
    absent = "sliding_window" not in config.values
    default = (4096 if absent else config.optional_integer("sliding_window"),) * layer_count(config)
    return dense_decoder(config, "mistral", DenseTraits(windows_from_layer_types(config, default)))


PUBLISHED = Published(
    "Mistral-7B-v0.1",
    {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    7_241_732_096,
)
FAMILIES.add("mistral", Family("mistral", decoder_spec, PUBLISHED))
