"""What dense families have in common: attention and feed-forward blocks, described by what tells one family from another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from exporter.checkpoint.config import Config
from exporter.checkpoint.rotary import read_rotary
from exporter.decoder.spec import (
    Activation,
    AttentionSpec,
    DecoderSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LayerSpec,
    NormSpan,
    NormSpec,
    RotaryScalingKind,
    RotarySpec,
)


@dataclass(frozen=True)
class DenseTraits:
    """What tells one dense family from another. The defaults are Llama's: pre-norm, rotary grouped-query attention, gated
    feed-forward, no bias."""

    windows: tuple[int | None, ...]
    norm: NormSpec | None = None
    """None means root-mean-square norms with the config's `rms_norm_eps`."""
    norm_before: bool = True
    norm_after: bool = False
    parallel: bool = False
    shared_norm: bool = False
    """Of a parallel block: the feed-forward reads what the attention reads."""
    query_key_norm: NormSpec | None = None
    query_key_norm_span: NormSpan = NormSpan.HEAD
    query_key_value_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    head_bias: bool = False
    kv_heads: int | None = None
    """Key/value heads of a family that has no field `num_key_value_heads`, or whose field may be absent."""
    head_dim: int | None = None
    """Head dimension when the config names none; None means hidden size over heads."""
    rotary: tuple[RotarySpec | None, ...] | None = None
    """Per layer; None means that all layers rotate as the config says."""
    partial_rotary: float | None = None
    """Rotated share of a head when the config names none; None means that this family rotates whole heads."""
    distance_slopes: tuple[float, ...] | None = None
    score_scales: tuple[float, ...] | None = None
    """Per layer; None means one over the root of the head dimension."""
    score_cap: float | None = None
    learned_sinks: bool = False
    inner_size: int | None = None
    """Width of the feed-forward block when the config names none."""
    activation: Activation | None = None
    """None means the config's `hidden_act`."""
    gated: bool = True
    experts: tuple[ExpertsSpec | None, ...] | None = None
    """Per layer; a layer without any has the dense block that the config describes."""
    tied_default: bool = False
    embedding_norm: NormSpec | None = None
    learned_positions: int = 0
    logits_cap: float | None = None
    context_limit: int | None = None
    """None means the config's `max_position_embeddings`."""

    def but(self, **changes: Any) -> DenseTraits:
        """The same traits with some changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class HeadShape:
    """Query heads, key/value heads, channels of a head."""

    query: int
    kv: int
    channels: int

    @staticmethod
    def read(config: Config, traits: DenseTraits) -> HeadShape:
        hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
        given = "num_key_value_heads" in config.values  # null means ungrouped
        kv_heads = config.integer("num_key_value_heads", traits.kv_heads or (heads if given else None))
        if heads % kv_heads:
            raise config.fault("num_key_value_heads", f"{kv_heads} does not divide num_attention_heads={heads}")
        if config.get("head_dim", traits.head_dim) is None and hidden % heads:
            raise config.fault(
                "num_attention_heads", f"{heads} does not divide hidden_size={hidden}, and head_dim is absent"
            )
        return HeadShape(heads, kv_heads, config.integer("head_dim", traits.head_dim or hidden // heads))

    def projections(self) -> tuple[int, int, int]:
        """Rows of the projections to queries, keys and values."""
        return self.query * self.channels, self.kv * self.channels, self.kv * self.channels


def layer_count(config: Config) -> int:
    return config.integer("num_hidden_layers")


def windows_from_layer_types(config: Config, default: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Per-layer windows from `layer_types` when the config lists them, else `default`."""
    kinds = config.get("layer_types")
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != layer_count(config):
        raise config.fault("layer_types", f"must list {layer_count(config)} layers, one per hidden layer")
    windows: list[int | None] = []
    for kind in kinds:
        if kind == "sliding_attention":
            windows.append(config.integer("sliding_window"))
        elif kind == "full_attention":
            windows.append(None)
        else:
            raise config.fault(
                "layer_types", f"unsupported kind {kind!r}; full_attention and sliding_attention are known"
            )
    return tuple(windows)


def full_attention(config: Config) -> tuple[int | None, ...]:
    """No window in any layer."""
    return (None,) * layer_count(config)


def dense_decoder(config: Config, family: str, traits: DenseTraits) -> DecoderSpec:
    """A decoder of attention and feed-forward blocks. Raises CheckpointError naming the field that does not fit."""
    shape = HeadShape.read(config, traits)
    norm = traits.norm or NormSpec(config.number("rms_norm_eps", 1e-6))
    rotary = traits.rotary or (read_rotary(config, shape.channels, traits.partial_rotary),) * layer_count(config)
    scales = traits.score_scales or (shape.channels**-0.5,) * layer_count(config)
    inner = config.integer("intermediate_size", traits.inner_size)
    feed_forward = FeedForwardSpec(
        inner, traits.activation or config.activation(), traits.feed_forward_bias, traits.gated
    )
    experts = traits.experts or (None,) * layer_count(config)
    layers = tuple(
        _layer(_attention(shape, traits, window, turn, scale), block or feed_forward, norm, traits)
        for window, turn, scale, block in zip(traits.windows, rotary, scales, experts, strict=True)
    )
    return DecoderSpec(
        family,
        config.integer("vocab_size"),
        config.integer("hidden_size"),
        traits.context_limit or _context_limit(config, rotary),
        layers,
        norm,
        config.flag("tie_word_embeddings", traits.tied_default),
        traits.embedding_norm,
        traits.learned_positions,
        traits.head_bias,
        traits.logits_cap,
    )


def _context_limit(config: Config, rotary: tuple[RotarySpec | None, ...]) -> int:
    """The config's own limit is where dynamic scaling begins; its factor says how far it is meant to go."""
    limit = config.integer("max_position_embeddings")
    scalings = [turn.scaling for turn in rotary if turn is not None and turn.scaling is not None]
    stretched = [scaling.factor for scaling in scalings if scaling.kind is RotaryScalingKind.DYNAMIC]
    return int(limit * min(stretched, default=1.0))


def _layer(
    attention: AttentionSpec, feed_forward: FeedForwardSpec | ExpertsSpec, norm: NormSpec, traits: DenseTraits
) -> LayerSpec:
    before = norm if traits.norm_before else None
    after = norm if traits.norm_after else None
    second = None if traits.shared_norm else before
    return LayerSpec(before, attention, second, feed_forward, after, after, traits.parallel)


def _attention(
    shape: HeadShape, traits: DenseTraits, window: int | None, rotary: RotarySpec | None, scale: float
) -> AttentionSpec:
    return AttentionSpec(
        shape.query,
        shape.kv,
        shape.channels,
        scale,
        rotary,
        window,
        traits.query_key_norm,
        traits.query_key_value_bias,
        traits.output_bias,
        traits.query_key_norm_span,
        traits.score_cap,
        traits.distance_slopes,
        traits.learned_sinks,
    )
