"""Falcon: attention beside an ungated feed-forward, one key/value head or a few, each with its queries in one fused tensor."""

import math

from exporter.checkpoint.alibi import distance_slopes
from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, HeadShape, dense_decoder, full_attention, layer_count
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import QUERY_KEY_VALUE, Source, WeightMap
from exporter.decoder.spec import DecoderSpec, NormKind, NormSpec

BFLOAT16_STEPS = 2**8
WEIGHTS = WeightMap.of(
    {
        "embedding": "transformer.word_embeddings.weight",
        "layers.attention_norm": "transformer.h.{}.input_layernorm.weight",
        "layers.attention.output": "transformer.h.{}.self_attention.dense.weight",
        "layers.feed_forward_norm": "transformer.h.{}.post_attention_layernorm.weight",
        "layers.feed_forward.up": "transformer.h.{}.mlp.dense_h_to_4h.weight",
        "layers.feed_forward.down": "transformer.h.{}.mlp.dense_4h_to_h.weight",
        "final_norm": "transformer.ln_f.weight",
        "head": "lm_head.weight",
    },
    prefix="transformer.",
)
TWO_NORMS = {
    "layers.attention_norm": Source("transformer.h.{}.ln_attn.weight"),
    "layers.feed_forward_norm": Source("transformer.h.{}.ln_mlp.weight"),
}


def decoder_spec(file: Config) -> DecoderSpec:
    config = usual_names(file)
    return dense_decoder(config, "falcon", traits(config))


def usual_names(file: Config) -> Config:
    heads = file.integer("num_attention_heads")
    newer = file.flag("new_decoder_architecture", False)
    single = file.flag("multi_query", True) and not newer
    kv_heads = file.integer("num_kv_heads", heads) if newer else 1 if single else heads
    inner = file.integer("ffn_hidden_size", 4 * file.integer("hidden_size"))
    derived = {"num_key_value_heads": kv_heads, "intermediate_size": inner}
    return file.defaulting(max_position_embeddings=2048).replacing(**derived)


def norms_per_layer(config: Config) -> int:
    """Of a parallel block. Raises CheckpointError for combinations that no published model has."""
    newer = config.flag("new_decoder_architecture", False)
    count = config.integer("num_ln_in_parallel_attn", 2 if newer else 1)
    if count > (2 if newer else 1):
        raise config.fault("num_ln_in_parallel_attn", f"{count} is not supported")
    if newer and not config.flag("parallel_attn", True):
        raise config.fault("parallel_attn", "false is not supported together with new_decoder_architecture")
    return count


def traits(config: Config) -> DenseTraits:
    bias, alibi = config.flag("bias", False), config.flag("alibi", False)
    parallel = config.flag("parallel_attn", True)
    return DenseTraits(
        full_attention(config),
        norm=NormSpec(config.number("layer_norm_epsilon", 1e-5), NormKind.LAYER, bias=True),
        parallel=parallel,
        shared_norm=parallel and norms_per_layer(config) == 1,
        query_key_value_bias=bias,
        output_bias=bias,
        feed_forward_bias=bias,
        rotary=(None,) * layer_count(config) if alibi else None,
        distance_slopes=scaled_slopes(config) if alibi else None,
        activation=config.activation("activation", "gelu"),
        gated=False,
        tied_default=True,
    )


def scaled_slopes(config: Config) -> tuple[float, ...]:
    """This family rounds slopes to bfloat16, and scales scores after it has added what they make of the distance."""
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    return tuple(to_bfloat16(slope) * (hidden // heads) ** -0.5 for slope in distance_slopes(heads))


def to_bfloat16(number: float) -> float:
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(mantissa * BFLOAT16_STEPS) / BFLOAT16_STEPS, exponent)


def weights(file: Config) -> WeightMap:
    config = usual_names(file)
    shape = HeadShape.read(config, traits(config))
    counts = (shape.query // shape.kv * shape.channels, shape.channels, shape.channels)
    fused = WEIGHTS.joined("transformer.h.{}.self_attention.query_key_value.weight", QUERY_KEY_VALUE, counts)
    two = config.flag("parallel_attn", True) and norms_per_layer(config) == 2
    return fused.including(TWO_NORMS) if two else fused


PUBLISHED = Published(
    "falcon-7b",
    {
        "vocab_size": 65024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "num_kv_heads": 71,
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "layer_norm_epsilon": 1e-05,
    },
    6_921_720_704,
)
FAMILIES.add("falcon", Family("falcon", decoder_spec, PUBLISHED, weights))
