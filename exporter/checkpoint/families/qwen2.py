"""Qwen2 and Qwen2.5: biased query, key and value projections; the upper layers may be windowed."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, layer_count, windows_from_layer_types
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.decoder.spec import DecoderSpec


def upper_layer_windows(config: Config) -> tuple[int | None, ...]:
    """`use_sliding_window` bounds the layers from `max_window_layers` on, unless `layer_types` says otherwise."""
    if not config.flag("use_sliding_window", False):
        return windows_from_layer_types(config, (None,) * layer_count(config))
    window, first = config.integer("sliding_window"), config.integer("max_window_layers", 28, least=0)
    default = tuple(window if index >= first else None for index in range(layer_count(config)))
    return windows_from_layer_types(config, default)


def decoder_spec(config: Config) -> DecoderSpec:
    return dense_decoder(config, "qwen2", DenseTraits(upper_layer_windows(config), query_key_value_bias=True))


PUBLISHED = Published(
    "Qwen2.5-0.5B",
    {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    494_032_768,
)
FAMILIES.add(
    "qwen2",
    Family("qwen2", decoder_spec, PUBLISHED, text_parts=("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text")),
)
