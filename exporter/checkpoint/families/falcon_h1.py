"""Falcon-H1: Mamba 2 and attention side by side in every layer, and constant factors on nearly everything."""

from dataclasses import replace

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, full_attention, layer_count
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.recurrent import (
    HYBRID_MAMBA2_NAMES,
    dual_weights,
    hybrid_decoder,
    hybrid_weights,
    inner_channels,
    read_dual,
)
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, QUERY_KEY_VALUE, WeightMap, scaled_ends
from exporter.decoder.recurrence import StateSpaceDual
from exporter.decoder.spec import DecoderSpec, NormSpec

BIASES = {
    "layers.attention.query.bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers.attention.key.bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers.attention.value.bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers.recurrence.input.bias": "model.layers.{}.mamba.in_proj.bias",
}
WEIGHTS = hybrid_weights(LLAMA_WEIGHTS, dual_weights("model.layers.{}.mamba") | BIASES)


def decoder_spec(file: Config) -> DecoderSpec:
    config = file.defaulting(max_position_embeddings=8192)
    eps, bias = config.number("rms_norm_eps", 1e-5), config.flag("attention_bias", False)
    traits = DenseTraits(
        full_attention(config),
        norm=NormSpec(eps),
        query_key_value_bias=bias,
        output_bias=bias,
        feed_forward_bias=config.flag("mlp_bias", False),
        kv_heads=8,
    )
    return hybrid_decoder(config, "falcon_h1", traits, (mixer(config),) * layer_count(config), beside=True)


def mixer(config: Config) -> StateSpaceDual:
    eps = config.number("rms_norm_eps", 1e-5) if config.flag("mamba_rms_norm", False) else None
    named = config.defaulting(mamba_n_heads=128, mamba_n_groups=1, mamba_d_state=256).named(HYBRID_MAMBA2_NAMES)
    null = "mamba_d_ssm" in config.values and config.get("mamba_d_ssm") is None  # then it follows from the expansion
    dual = read_dual(named, inner_channels(named) if null else config.integer("mamba_d_ssm", 1024), eps)
    output_bias = config.flag("projectors_bias", False)
    before = config.flag("mamba_norm_before_gate", True)
    return replace(dual, output_bias=output_bias, norm_before_gate=eps is not None and before)


def weights(config: Config) -> WeightMap:
    """The factor on a block's input scales its matrices and leaves their biases; every other one scales both."""
    attention_in, recurrence_in = (config.number(f"{block}_in_multiplier", 1.0) for block in ("attention", "ssm"))
    key, gate_down = config.number("key_multiplier", 1.0), multipliers(config, "mlp_multipliers", 2)
    dual = mixer(config)
    parts = (dual.channels, *dual.convolved_sizes, dual.heads)
    rows = tuple(zip(parts, multipliers(config, "ssm_multipliers", 5), strict=True))
    scaled = (
        WEIGHTS.changed(QUERY_KEY_VALUE, factor=attention_in)
        .changed(["layers.attention.key"], factor=attention_in * key)
        .changed(["layers.attention.key.bias"], factor=key)
        .changed(["layers.attention.output"], factor=config.number("attention_out_multiplier", 1.0))
        .changed(["layers.recurrence.input", "layers.recurrence.input.bias"], row_factors=rows)
        .changed(["layers.recurrence.input"], factor=recurrence_in)
        .changed(["layers.recurrence.output"], factor=config.number("ssm_out_multiplier", 1.0))
        .changed(["layers.feed_forward.gate"], factor=gate_down[0])
        .changed(["layers.feed_forward.down"], factor=gate_down[1])
    )
    ends = (config.positive(name, 1.0) for name in ("embedding_multiplier", "lm_head_multiplier"))
    return scaled_ends(scaled, config.flag("tie_word_embeddings", False), *ends)


def multipliers(config: Config, field: str, count: int) -> list[float]:
    """So many numbers, ones when absent."""
    values = config.get(field, [1.0] * count)
    if not isinstance(values, list) or len(values) != count:
        raise config.fault(field, f"must list {count} numbers")
    listed = Config({str(index): value for index, value in enumerate(values)}, f"{config.source}: {field}")
    return [listed.number(str(index)) for index in range(count)]


PUBLISHED = Published(
    "Falcon-H1-0.5B-Base",
    {
        "vocab_size": 32784,
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000000000.0,
        "mamba_d_ssm": 1536,
        "mamba_n_heads": 24,
        "mamba_d_head": 64,
        "mamba_n_groups": 1,
        "mamba_d_state": 128,
        "mamba_d_conv": 4,
        "mamba_rms_norm": False,
        "tie_word_embeddings": False,
    },
    521_411_104,
)
FAMILIES.add("falcon_h1", Family("falcon_h1", decoder_spec, PUBLISHED, weights))
