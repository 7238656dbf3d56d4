"""Granite 4 hybrids: Mamba 2 and attention under Granite's multipliers. Experts are refused: the dense members have none."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, HeadShape, full_attention, layer_count
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.recurrent import (
    HYBRID_MAMBA2_NAMES,
    dual_weights,
    hybrid_decoder,
    inner_channels,
    layer_kinds,
    read_dual,
)
from exporter.checkpoint.rotary import read_rotary
from exporter.checkpoint.weight_map import GATE_UP, LLAMA_WEIGHTS, RESIDUALS, WeightMap, scaled_ends
from exporter.decoder.spec import DecoderSpec, NormSpec

RECURRENT, ATTENTION = "linear_attention", "full_attention"
FUSED = "model.layers.{}.shared_mlp.input_linear.weight"
WEIGHTS = LLAMA_WEIGHTS.including(
    WeightMap.of(
        {
            **dual_weights("model.layers.{}.mamba"),
            "layers.feed_forward.down": "model.layers.{}.shared_mlp.output_linear.weight",
        }
    ).sources
)


def decoder_spec(file: Config) -> DecoderSpec:
    config = usual_names(file)
    if config.integer("num_local_experts", 8, least=0):
        raise config.fault("num_local_experts", "layers of experts between recurrent ones are not supported")
    eps, bias, count = config.number("rms_norm_eps", 1e-6), config.flag("attention_bias", False), layer_count(config)
    plain = DenseTraits(full_attention(config), kv_heads=config.integer("num_attention_heads"))
    rotary = read_rotary(config, HeadShape.read(config, plain).channels) if rotates(config) else None
    traits = plain.but(
        norm=NormSpec(eps),
        query_key_value_bias=bias,
        output_bias=bias,
        rotary=(rotary,) * count,
        score_scales=(config.number("attention_multiplier", 1.0),) * count,
    )
    named = config.named(HYBRID_MAMBA2_NAMES)
    mixer = read_dual(named, inner_channels(named), eps)
    kinds = layer_kinds(config, "layer_types", (RECURRENT, ATTENTION), [RECURRENT] * count)
    return hybrid_decoder(config, "granitemoehybrid", traits, [mixer if kind == RECURRENT else None for kind in kinds])


def usual_names(file: Config) -> Config:
    config = file.defaulting(mamba_n_heads=128, mamba_n_groups=1, mamba_d_state=256, max_position_embeddings=2048)
    kinds = config.get("layer_types", config.get("layers_block_type"))
    inner = config.integer("shared_intermediate_size", 1024)
    return config.replacing(layer_types=kinds, intermediate_size=inner)


def rotates(config: Config) -> bool:
    return config.get("position_embedding_type") == "rope"


def weights(config: Config) -> WeightMap:
    inner = config.integer("shared_intermediate_size", 1024)
    residual = config.positive("residual_multiplier", 1.0)
    named = WEIGHTS.joined(FUSED, GATE_UP, (inner, inner))
    folded = named.changed([*RESIDUALS, "layers.recurrence.output"], factor=residual)
    embedding, logits = config.positive("embedding_multiplier", 1.0), 1 / config.positive("logits_scaling", 1.0)
    return scaled_ends(folded, config.flag("tie_word_embeddings", False), embedding, logits)


PUBLISHED = Published(
    "granite-4.0-h-350m",
    {
        "vocab_size": 100352,
        "hidden_size": 768,
        "shared_intermediate_size": 2048,
        "num_hidden_layers": 32,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-05,
        "position_embedding_type": "nope",
        "num_local_experts": 0,
        "layer_types": ["attention" if index in (10, 13, 17, 27) else "mamba" for index in range(32)],
        "mamba_n_heads": 48,
        "mamba_d_head": 32,
        "mamba_n_groups": 1,
        "mamba_d_state": 128,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "embedding_multiplier": 12,
        "residual_multiplier": 0.246,
        "attention_multiplier": 0.015625,
        "logits_scaling": 3,
        "tie_word_embeddings": True,
    },
    340_332_224,
)
FAMILIES.add("granitemoehybrid", Family("granitemoehybrid", decoder_spec, PUBLISHED, weights))
