"""Phi-3 and Phi-4: fused projections, LongRoPE for long contexts, part of a head rotated (Phi-4 mini)."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, HeadShape, dense_decoder, layer_count
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.rotary import read_rotary
from exporter.checkpoint.weight_map import GATE_UP, LLAMA_WEIGHTS, QUERY_KEY_VALUE, WeightMap
from exporter.decoder.spec import DecoderSpec, NormSpec, RotaryScalingKind

FORMER_LONGROPE = {"su": "longrope", "yarn": "longrope"}
"""What this family's early checkpoints called its rule."""


def decoder_spec(config: Config) -> DecoderSpec:
    return dense_decoder(config, "phi3", traits(config))


def traits(config: Config) -> DenseTraits:
    stretched = config.defaulting(original_max_position_embeddings=4096)
    plain = DenseTraits(
        (config.optional_integer("sliding_window"),) * layer_count(config),
        norm=NormSpec(config.number("rms_norm_eps", 1e-5)),
        kv_heads=config.integer("num_attention_heads"),
    )
    rotary = read_rotary(stretched, HeadShape.read(config, plain).channels, 1.0, former=FORMER_LONGROPE)
    if rotary.scaling is not None and rotary.scaling.kind is not RotaryScalingKind.LONGROPE:
        raise config.fault("rope_scaling", f"{rotary.scaling.kind.value}: this family stretches by longrope only")
    return plain.but(rotary=(rotary,) * layer_count(config))


def weights(config: Config) -> WeightMap:
    shape, inner = HeadShape.read(config, traits(config)), config.integer("intermediate_size")
    fused = LLAMA_WEIGHTS.joined("model.layers.{}.self_attn.qkv_proj.weight", QUERY_KEY_VALUE, shape.projections())
    return fused.joined("model.layers.{}.mlp.gate_up_proj.weight", GATE_UP, (inner, inner))


PUBLISHED = Published(
    "Phi-3-mini-4k-instruct",
    {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
    },
    3_821_079_552,
)
FAMILIES.add("phi3", Family("phi3", decoder_spec, PUBLISHED, weights))
