"""SmolLM3: every few layers do without rotary embedding."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, HeadShape, dense_decoder, layer_count, windows_from_layer_types
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.rotary import read_rotary
from exporter.decoder.spec import DecoderSpec

THETA = 2_000_000.0


def decoder_spec(config: Config) -> DecoderSpec:
    turning, attention_bias = rotated_layers(config), config.flag("attention_bias", False)
    window = config.optional_integer("sliding_window") if config.flag("use_sliding_window", False) else None
    traits = DenseTraits(
        windows_from_layer_types(config, tuple(None if turns else window for turns in turning)),
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=config.flag("mlp_bias", False),
        kv_heads=config.integer("num_attention_heads") if "num_key_value_heads" in config.values else 4,
        tied_default=True,
    )
    rotary = read_rotary(config, HeadShape.read(config, traits).channels, theta=THETA)
    return dense_decoder(config, "smollm3", traits.but(rotary=tuple(rotary if turns else None for turns in turning)))


def rotated_layers(config: Config) -> tuple[bool, ...]:
    """`no_rope_layers` holds 1 for the layers that do rotate."""
    flags, count = config.get("no_rope_layers"), layer_count(config)
    if flags is None:
        interval = config.integer("no_rope_layer_interval", 4)
        return tuple((index + 1) % interval != 0 for index in range(count))
    if not isinstance(flags, list) or len(flags) != count or set(flags) - {0, 1}:
        raise config.fault("no_rope_layers", f"must list {count} numbers, 1 for a layer that rotates and 0 for others")
    return tuple(map(bool, flags))


PUBLISHED = Published(
    "SmolLM3-3B",
    {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-06,
        "rope_theta": 5000000.0,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    },
    3_075_098_624,
)
FAMILIES.add("smollm3", Family("smollm3", decoder_spec, PUBLISHED))
