"""Jamba: selective scans with normalized parameters in most layers, attention without positions in some, experts in every second one."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, full_attention, layer_count
from exporter.checkpoint.experts import expert_weights, gated_expert, read_routing
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.recurrent import (
    hybrid_decoder,
    hybrid_weights,
    inner_channels,
    read_selective_scan,
    scan_weights,
)
from exporter.checkpoint.weight_map import WeightMap
from exporter.decoder.spec import DecoderSpec, ExpertsSpec, NormSpec

NAMES = {
    "state_size": "mamba_d_state",
    "conv_kernel": "mamba_d_conv",
    "expand": "mamba_expand",
    "time_step_rank": "mamba_dt_rank",
    "use_conv_bias": "mamba_conv_bias",
    "use_bias": "mamba_proj_bias",
}
MIXTURE = expert_weights("model.layers.{}.feed_forward", "gate_proj", "up_proj", "down_proj", "router")
NORMS = {
    "layers.recurrence.step_norm": "model.layers.{}.mamba.dt_layernorm.weight",
    "layers.recurrence.input_norm": "model.layers.{}.mamba.b_layernorm.weight",
    "layers.recurrence.output_norm": "model.layers.{}.mamba.c_layernorm.weight",
}
WEIGHTS = hybrid_weights(MIXTURE, scan_weights("model.layers.{}.mamba") | NORMS)


def decoder_spec(file: Config) -> DecoderSpec:
    config = file.defaulting(max_position_embeddings=262144, intermediate_size=14336)
    eps, count = config.number("rms_norm_eps", 1e-6), layer_count(config)
    traits = DenseTraits(
        full_attention(config), norm=NormSpec(eps), kv_heads=8, rotary=(None,) * count, experts=experts(config)
    )
    named = config.named(NAMES)
    mixer = read_selective_scan(named, inner_channels(named), eps)
    period, offset = config.integer("attn_layer_period", 8), config.integer("attn_layer_offset", 4, least=0)
    if offset >= period:
        raise config.fault("attn_layer_offset", f"{offset} is not below attn_layer_period={period}")
    mixers = [None if index % period == offset else mixer for index in range(count)]
    return hybrid_decoder(config, "jamba", traits, mixers)


def experts(file: Config) -> tuple[ExpertsSpec | None, ...]:
    """A layer whose turn it is has experts if there is more than one; the weights of the chosen ones do not sum to one."""
    config = file.defaulting(num_experts=16)
    count, period = layer_count(config), config.integer("expert_layer_period", 2)
    offset = config.integer("expert_layer_offset", 1, least=0)
    if offset >= period:
        raise config.fault("expert_layer_offset", f"{offset} is not below expert_layer_period={period}")
    if config.integer("num_experts") == 1:
        return (None,) * count
    block = ExpertsSpec(read_routing(config, "num_experts", 2), gated_expert(config, "intermediate_size"))
    return tuple(block if index % period == offset else None for index in range(count))


def weights(config: Config) -> WeightMap:
    return WEIGHTS


PUBLISHED = Published(
    "AI21-Jamba-Reasoning-3B",
    {
        "vocab_size": 65536,
        "hidden_size": 2560,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 20,
        "num_key_value_heads": 1,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-06,
        "attn_layer_period": 14,
        "attn_layer_offset": 7,
        "num_experts": 1,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": 160,
        "tie_word_embeddings": True,
    },
    3_029_337_472,
)
FAMILIES.add("jamba", Family("jamba", decoder_spec, PUBLISHED, weights))
