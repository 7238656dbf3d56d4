"""What families with recurrent layers have in common: decoders without attention, and hybrids as dense decoders some of whose layers
mix tokens in another way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, layer_count
from exporter.checkpoint.weight_map import WeightMap
from exporter.decoder.recurrence import CausalConvolution, Recurrence, SelectiveScan, StateSpaceDual
from exporter.decoder.spec import Activation, DecoderSpec, LayerSpec, NormSpec

NO_LIMIT = 1 << 30
"""Positions of a decoder that counts none: what it keeps of a conversation does not grow."""

INFINITE = (math.inf, {"__float__": "Infinity"})
"""Infinity as Python's JSON has it, and as transformers 5 writes it."""

FORMER_LAYER_TYPES = {"mamba": "linear_attention", "attention": "full_attention"}
"""What layers were called before transformers 5."""


def recurrent_decoder(config: Config, family: str, mixer: Recurrence, norm: NormSpec, tied: bool) -> DecoderSpec:
    """Recurrent layers alone, each with a norm before it and nothing else."""
    layer = LayerSpec(norm, None, None, None, recurrence=mixer)
    return DecoderSpec(
        family,
        config.integer("vocab_size"),
        config.integer("hidden_size"),
        NO_LIMIT,
        (layer,) * layer_count(config),
        norm,
        config.flag("tie_word_embeddings", tied),
    )


def hybrid_decoder(
    config: Config, family: str, traits: DenseTraits, mixers: Sequence[Recurrence | None], beside: bool = False
) -> DecoderSpec:
    """A dense decoder in which a mixer replaces the attention of its layer, or stands beside it."""
    spec = dense_decoder(config, family, traits)

    def mixed(layer: LayerSpec, mixer: Recurrence | None) -> LayerSpec:
        if mixer is None:
            return layer
        return replace(layer, attention=layer.attention if beside else None, recurrence=mixer)

    return replace(spec, layers=tuple(mixed(layer, mixer) for layer, mixer in zip(spec.layers, mixers, strict=True)))


def layer_kinds(config: Config, field: str, known: tuple[str, ...], default: Sequence[str]) -> list[str]:
    """One of the known kinds per layer. Raises CheckpointError naming the field."""
    kinds = config.get(field, list(default))
    if not isinstance(kinds, list) or len(kinds) != layer_count(config):
        raise config.fault(field, f"must list {layer_count(config)} layers, one per hidden layer")
    kinds = [FORMER_LAYER_TYPES.get(str(kind), kind) for kind in kinds]
    strange = next((kind for kind in kinds if kind not in known), None)
    if strange is not None:
        raise config.fault(field, f"unsupported kind {strange!r}; {' and '.join(known)} are known")
    return kinds


def numbered_layers(config: Config, field: str, default: Sequence[int] = ()) -> list[int]:
    """Layers that a field lists by number. Raises CheckpointError naming the field."""
    numbers, count = config.get(field, list(default)), layer_count(config)
    if not isinstance(numbers, list) or not all(isinstance(index, int) and 0 <= index < count for index in numbers):
        raise config.fault(field, f"must list layers from 0 to {count - 1}")
    return numbers


def refuse_other_activations(config: Config) -> None:
    """Convolutions and gates of recurrent mixers know one activation."""
    if config.activation() is not Activation.SILU:
        raise config.fault("hidden_act", f"{config.get('hidden_act')!r} is not supported in recurrent layers")


def shortest_step(config: Config) -> float:
    """The lower end of `time_step_limit`; the upper one must be infinite."""
    limits = config.get("time_step_limit", [0.0, math.inf])
    numbers = isinstance(limits, list) and len(limits) == 2 and isinstance(limits[0], (int, float))
    if not numbers or not 0 <= limits[0] < math.inf or limits[1] not in INFINITE:
        raise config.fault("time_step_limit", f"{limits!r} is not supported; steps may be bounded from below only")
    return float(limits[0])


def read_selective_scan(config: Config, channels: int, parameter_norm_eps: float | None = None) -> SelectiveScan:
    """Mamba's mixer by its usual field names (see `Config.named`)."""
    refuse_other_activations(config)
    rank = config.get("time_step_rank", "auto")
    return SelectiveScan(
        CausalConvolution(channels, taps(config), config.flag("use_conv_bias", True)),
        config.integer("state_size", 16),
        -(-config.integer("hidden_size") // 16) if rank == "auto" else config.integer("time_step_rank"),
        config.flag("use_bias", False),
        parameter_norm_eps,
    )


def read_dual(config: Config, channels: int, norm_eps: float | None) -> StateSpaceDual:
    """Mamba 2's mixer by its usual field names (see `Config.named`)."""
    refuse_other_activations(config)
    heads, groups = config.integer("num_heads"), config.integer("n_groups")
    head_dim = channels // heads if config.get("head_dim", "auto") == "auto" else config.integer("head_dim")
    if heads * head_dim != channels:
        raise config.fault("num_heads", f"{heads} heads of {head_dim} channels are not the {channels} inner channels")
    if heads % groups:
        raise config.fault("n_groups", f"{groups} does not divide {heads} heads")
    state_size, bias = config.integer("state_size"), config.flag("use_bias", False)
    convolved = channels + 2 * groups * state_size
    return StateSpaceDual(
        CausalConvolution(convolved, taps(config), config.flag("use_conv_bias", True)),
        heads,
        head_dim,
        groups,
        state_size,
        bias,
        bias,
        norm_eps,
        shortest_step=shortest_step(config),
    )


def taps(config: Config) -> int:
    return config.integer("conv_kernel", 4, least=2)


def inner_channels(config: Config) -> int:
    """Of a mixer `expand` times as wide as the hidden states."""
    return int(config.positive("expand", 2) * config.integer("hidden_size"))


HYBRID_MAMBA2_NAMES = {
    "num_heads": "mamba_n_heads",
    "n_groups": "mamba_n_groups",
    "state_size": "mamba_d_state",
    "head_dim": "mamba_d_head",
    "conv_kernel": "mamba_d_conv",
    "use_conv_bias": "mamba_conv_bias",
    "use_bias": "mamba_proj_bias",
    "expand": "mamba_expand",
}
"""Usual names of Mamba 2's fields -> those of hybrids, whose usual names belong to their attention."""


def mamba_weights(prefix: str) -> dict[str, str]:
    """Tensors of a Mamba mixer below `prefix`, for `WeightMap.of`."""
    names = {
        "input": "in_proj.weight",
        "convolution": "conv1d.weight",
        "decay": "A_log",
        "skip": "D",
        "output": "out_proj.weight",
    }
    return {f"layers.recurrence.{name}": f"{prefix}.{tensor}" for name, tensor in names.items()}


def scan_weights(prefix: str) -> dict[str, str]:
    """Those of a selective scan."""
    own = {"parameters": "x_proj.weight", "step": "dt_proj.weight"}
    return mamba_weights(prefix) | {f"layers.recurrence.{name}": f"{prefix}.{tensor}" for name, tensor in own.items()}


def dual_weights(prefix: str) -> dict[str, str]:
    """Those of Mamba 2."""
    own = {"step_bias": "dt_bias", "norm": "norm.weight"}
    return mamba_weights(prefix) | {f"layers.recurrence.{name}": f"{prefix}.{tensor}" for name, tensor in own.items()}


def backbone_weights(mixer: dict[str, str]) -> WeightMap:
    """A decoder of recurrent layers alone, with the tensors of its mixers."""
    return WeightMap.of(
        {
            "embedding": "backbone.embeddings.weight",
            "layers.attention_norm": "backbone.layers.{}.norm.weight",
            **mixer,
            "final_norm": "backbone.norm_f.weight",
            "head": "lm_head.weight",
        },
        prefix="backbone.",
        former={"backbone.embeddings.weight": "backbone.embedding.weight"},
    )


def hybrid_weights(attention: WeightMap, mixer: dict[str, str]) -> WeightMap:
    """A hybrid as Jamba named its tensors and others after it: those of attention, those of its mixers, and a dense feed-forward block."""
    return attention.including(
        WeightMap.of(
            {
                **mixer,
                "layers.feed_forward_norm": "model.layers.{}.pre_ff_layernorm.weight",
                "layers.feed_forward.gate": "model.layers.{}.feed_forward.gate_proj.weight",
                "layers.feed_forward.up": "model.layers.{}.feed_forward.up_proj.weight",
                "layers.feed_forward.down": "model.layers.{}.feed_forward.down_proj.weight",
                "final_norm": "model.final_layernorm.weight",
            }
        ).sources
    )
