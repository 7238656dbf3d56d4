"""DecoderSpec: a model family as data. Everything that a target needs to build the decoder, and no weight.

Notation: S tokens in this chunk, C cache slots, D hidden size, H query heads, K key/value heads, Hd head dimension, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from exporter.decoder.experts import RoutingSpec
from exporter.decoder.latent import LatentSpec
from exporter.decoder.recurrence import Recurrence, SharedBlock, StateSpec


class Activation(StrEnum):
    """Elementwise non-linearity of the feed-forward block."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    QUICK_GELU = "quick_gelu"
    RELU = "relu"


class RotaryScalingKind(StrEnum):
    """How rotary frequencies are stretched for long contexts."""

    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"
    LONGROPE = "longrope"
    DYNAMIC = "dynamic"

    @property
    def depends_on_context(self) -> bool:
        """Whether frequencies differ between a short and a long context."""
        return self in (RotaryScalingKind.LONGROPE, RotaryScalingKind.DYNAMIC)


@dataclass(frozen=True)
class RotaryScaling:
    """Parameters of one rotary scaling rule; unused ones keep their defaults.

    `short_factors` and `long_factors` [dimensions / 2] stretch each channel pair for contexts up to `original_context`, and beyond.
    `context` is the length that the decoder is made for (see `for_context`), where the rule depends on it.
    """

    kind: RotaryScalingKind
    factor: float
    original_context: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    context: int = 0
    truncate: bool = True
    """Of YaRN: whether its band of channels begins and ends at whole numbers."""


@dataclass(frozen=True)
class RotarySpec:
    """Rotary position embedding (RoFormer, arXiv 2104.09864) in the half-split layout.

    `dimensions` is the number of leading channels of a head that are rotated; the rest pass through.
    """

    dimensions: int
    theta: float
    scaling: RotaryScaling | None = None


class NormKind(StrEnum):
    """Root-mean-square normalization (arXiv 1910.07467), or layer normalization, which also takes the mean off (arXiv 1607.06450)."""

    RMS = "rms"
    LAYER = "layer"


@dataclass(frozen=True)
class NormSpec:
    """Normalization over the last axis, times a stored gain; `bias` adds a stored vector after it. With `groups`, the axis is cut into
    so many equal parts, each normalized by itself."""

    eps: float
    kind: NormKind = NormKind.RMS
    bias: bool = False
    groups: int = 1


class NormSpan(StrEnum):
    """What a norm of queries and keys runs over: each head by itself, or the whole projection before it is cut into heads."""

    HEAD = "head"
    PROJECTION = "projection"


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention of one layer. `window` counts the positions that a token sees, itself included.

    `score_cap` replaces scores x by cap * tanh(x / cap). `distance_slopes` has a number per query head that is multiplied by
    key position minus query position and added to the scores (ALiBi, arXiv 2108.12409). `learned_sinks` is a stored vector [H] of
    logits that share the softmax with the scores and have no value: a token may attend to nothing.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    score_scale: float
    rotary: RotarySpec | None
    window: int | None = None
    query_key_norm: NormSpec | None = None
    query_key_value_bias: bool = False
    output_bias: bool = False
    query_key_norm_span: NormSpan = NormSpan.HEAD
    score_cap: float | None = None
    distance_slopes: tuple[float, ...] | None = None
    learned_sinks: bool = False
    latent: LatentSpec | None = None
    """A layer whose cached vectors, `head_dim` channels of one head, are keys and values at once."""

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.query_heads // self.kv_heads


@dataclass(frozen=True)
class FeedForwardSpec:
    """Feed-forward block: down(activation(gate(x)) * up(x)), or without a gate down(activation(up(x)))."""

    hidden_size: int
    activation: Activation
    bias: bool = False
    gated: bool = True


@dataclass(frozen=True)
class ExpertsSpec:
    """A feed-forward block of experts with equal shapes, each [D -> D]. `shared` is one that every token passes beside the chosen
    ones; `shared_gate` scales it per token by the sigmoid of a product with a stored vector [1, D].

    An expert is down(activation(min(gate(x), limit)) * (clip(up(x), limit) + up_offset)).
    """

    routing: RoutingSpec
    expert: FeedForwardSpec
    shared: FeedForwardSpec | None = None
    shared_gate: bool = False
    limit: float | None = None
    up_offset: float = 0.0

    @property
    def hidden_size(self) -> int:
        """Inner channels that one token passes."""
        return self.routing.chosen * self.expert.hidden_size + (self.shared.hidden_size if self.shared else 0)


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer. A norm stands before a block, after it, at both places or at neither.

    What mixes tokens is the attention, the recurrence, or the sum of both, which then read the same. A layer may be without a
    feed-forward block.

    The feed-forward block follows the attention, or stands beside it (`parallel`) and reads the layer's own input; a parallel
    block without a norm of its own reads what the attention reads.
    """

    attention_norm: NormSpec | None
    attention: AttentionSpec | None
    feed_forward_norm: NormSpec | None
    feed_forward: FeedForwardSpec | ExpertsSpec | None
    attention_post_norm: NormSpec | None = None
    feed_forward_post_norm: NormSpec | None = None
    parallel: bool = False
    recurrence: Recurrence | None = None
    shared: SharedBlock | None = None
    """With it, attention and feed-forward are that block's, and stand before the recurrence."""

    @property
    def heads(self) -> AttentionSpec:
        """The attention of a layer that is known to have one."""
        assert self.attention is not None
        return self.attention

    @property
    def states(self) -> tuple[StateSpec, ...]:
        """What the layer carries from token to token beside its cache."""
        return () if self.recurrence is None else self.recurrence.states


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only language model.

    Constant factors on embeddings, residuals and logits have no place here: they are folded into weights as these are read.
    `learned_positions` is the number of rows of a table that is added to the embeddings, 0 without one.
    """

    family: str
    vocab_size: int
    hidden_size: int
    context_limit: int
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    tied_embedding: bool
    embedding_norm: NormSpec | None = None
    learned_positions: int = 0
    head_bias: bool = False
    logits_cap: float | None = None

    @property
    def attentions(self) -> tuple[AttentionSpec, ...]:
        """Of the layers that have one."""
        return tuple(layer.attention for layer in self.layers if layer.attention is not None)


def rotary_settings(spec: DecoderSpec) -> tuple[RotarySpec, ...]:
    """The different rotary settings of the layers, in the order of their first use."""
    return tuple(dict.fromkeys(attention.rotary for attention in spec.attentions if attention.rotary is not None))


def for_context(spec: DecoderSpec, context: int) -> DecoderSpec:
    """The decoder as it computes with room for `context` tokens.

    Keys are cached rotated, so a rule that changes its frequencies with the length (LongRoPE, dynamic) must settle on one length:
    that of the longest conversation.
    """

    def settled(layer: LayerSpec) -> LayerSpec:
        attention = layer.attention
        rotary = None if attention is None else attention.rotary
        if attention is None or rotary is None or rotary.scaling is None or not rotary.scaling.kind.depends_on_context:
            return layer
        rotary = replace(rotary, scaling=replace(rotary.scaling, context=context))
        return replace(layer, attention=replace(attention, rotary=rotary))

    return replace(spec, layers=tuple(settled(layer) for layer in spec.layers))
