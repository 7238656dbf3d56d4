"""DecoderSpec: a model family as data. Everything that a target needs to build the decoder, and no weight.

Notation: S tokens in this chunk, C cache slots, D hidden size, H query heads, K key/value heads, Hd head dimension, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from exporter.decoder.experts import ROUTER, SELECTION_BIAS, SHARED, SHARED_GATE, RoutingSpec, expert_prefix, is_expert
from exporter.decoder.latent import LATENT, ROTARY_KEY, LatentSpec
from exporter.decoder.recurrence import Recurrence, SharedBlock, StateSpec, recurrent_weights


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


class WeightKind(StrEnum):
    """What a weight is used for: quantizers treat matrices, tables and vectors differently."""

    TABLE = "table"
    MATRIX = "matrix"
    VECTOR = "vector"


@dataclass(frozen=True)
class WeightSpec:
    """Canonical name, kind and shape of one weight. Matrices are [out, in], the table is [V, D]."""

    name: str
    kind: WeightKind
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total


EMBEDDING = "embedding"
EMBEDDING_NORM = "embedding_norm"
POSITIONS = "positions"
HEAD = "head"
HEAD_BIAS = "head.bias"
FINAL_NORM = "final_norm"
SINKS = "sinks"


SHARED_INPUTS = {"key": "query", "value": "query", "up": "gate", ROTARY_KEY: LATENT}
"""Matrices that read the same input as another one of their block: they share its covariance, and a target may fuse their products."""


def same_input(leader: str) -> tuple[str, ...]:
    """Names of the matrices that read the input of this one, without it."""
    block, _, last = leader.rpartition(".")
    return tuple(f"{block}.{name}" for name, first in SHARED_INPUTS.items() if first == last)


def layer_weights(spec: DecoderSpec, index: int) -> tuple[WeightSpec, ...]:
    """Every weight of layer `index`, in the order in which the forward pass uses them."""
    layer, prefix, hidden = spec.layers[index], f"layers.{index}", spec.hidden_size
    if layer.shared is not None:
        return _layer_with_shared_weights(spec, index, layer.shared)
    return (
        *norm_weights(f"{prefix}.attention_norm", layer.attention_norm, hidden),
        *_attention_weights(f"{prefix}.attention", layer.attention, hidden),
        *_recurrence_weights(f"{prefix}.recurrence", layer.recurrence, hidden),
        *norm_weights(f"{prefix}.attention_post_norm", layer.attention_post_norm, hidden),
        *norm_weights(f"{prefix}.feed_forward_norm", layer.feed_forward_norm, hidden),
        *_feed_forward_weights(f"{prefix}.feed_forward", layer.feed_forward, hidden),
        *norm_weights(f"{prefix}.feed_forward_post_norm", layer.feed_forward_post_norm, hidden),
    )


def sinks_name(layer: int) -> str:
    """The weight that holds a layer's learned sinks."""
    return f"layers.{layer}.attention.{SINKS}"


def _layer_with_shared_weights(spec: DecoderSpec, index: int, shared: SharedBlock) -> tuple[WeightSpec, ...]:
    """The first layer with a shared block lists its weights."""
    layer, prefix, hidden = spec.layers[index], f"layers.{index}", spec.hidden_size
    numbers = [other.shared.number for other in spec.layers[:index] if other.shared is not None]
    return (
        *(() if shared.number in numbers else shared_weights(layer, shared, hidden)),
        *adapter_weights(f"{prefix}.adapter", layer, shared, hidden),
        WeightSpec(f"{prefix}.shared_output", WeightKind.MATRIX, (hidden, hidden)),
        *norm_weights(f"{prefix}.attention_norm", layer.attention_norm, hidden),
        *_recurrence_weights(f"{prefix}.recurrence", layer.recurrence, hidden),
    )


def shared_weights(layer: LayerSpec, shared: SharedBlock, hidden: int) -> tuple[WeightSpec, ...]:
    """What layers share: `shared.NUMBER.` and the usual names."""
    name, attention = f"shared.{shared.number}", layer.heads
    width, norm = attention.query_heads * attention.head_dim, NormSpec(shared.norm_eps)
    sides = {
        "query": width,
        "key": attention.kv_heads * attention.head_dim,
        "value": attention.kv_heads * attention.head_dim,
    }
    return (
        *norm_weights(f"{name}.attention_norm", norm, 2 * hidden),
        *(
            WeightSpec(f"{name}.attention.{side}", WeightKind.MATRIX, (rows, 2 * hidden))
            for side, rows in sides.items()
        ),
        WeightSpec(f"{name}.attention.output", WeightKind.MATRIX, (hidden, width)),
        *norm_weights(f"{name}.feed_forward_norm", norm, hidden),
        *_feed_forward_weights(f"{name}.feed_forward", layer.feed_forward, hidden),
    )


def adapter_weights(prefix: str, layer: LayerSpec, shared: SharedBlock, hidden: int) -> tuple[WeightSpec, ...]:
    """What a layer adds to the projections of its shared block: for each a matrix down to the rank and one up from it."""
    assert layer.feed_forward is not None
    attention, inner = layer.heads, layer.feed_forward.hidden_size
    shapes = {"inner": (2 * inner, hidden)}
    if shared.attention_adapters:
        width = attention.query_heads * attention.head_dim
        shapes = {side: (width, 2 * hidden) for side in ("query", "key", "value")} | shapes
    return tuple(
        weight
        for name, (rows, columns) in shapes.items()
        for weight in (
            WeightSpec(f"{prefix}.{name}_down", WeightKind.MATRIX, (shared.adapter_rank, columns)),
            WeightSpec(f"{prefix}.{name}_up", WeightKind.MATRIX, (rows, shared.adapter_rank)),
        )
    )


def norm_weights(name: str, norm: NormSpec | None, size: int) -> tuple[WeightSpec, ...]:
    """Gain and bias of a norm over `size` channels; nothing for no norm."""
    if norm is None:
        return ()
    gain = WeightSpec(name, WeightKind.VECTOR, (size,))
    return (gain, WeightSpec(f"{name}.bias", WeightKind.VECTOR, (size,))) if norm.bias else (gain,)


def _matrix_weights(name: str, rows: int, columns: int, bias: bool) -> tuple[WeightSpec, ...]:
    matrix = WeightSpec(name, WeightKind.MATRIX, (rows, columns))
    return (matrix, WeightSpec(f"{name}.bias", WeightKind.VECTOR, (rows,))) if bias else (matrix,)


def _recurrence_weights(prefix: str, recurrence: Recurrence | None, hidden: int) -> tuple[WeightSpec, ...]:
    if recurrence is None:
        return ()
    kinds = {True: WeightKind.MATRIX, False: WeightKind.VECTOR}
    weights = recurrent_weights(recurrence, hidden)
    return tuple(WeightSpec(f"{prefix}.{weight.name}", kinds[weight.matrix], weight.shape) for weight in weights)


def _attention_weights(prefix: str, attention: AttentionSpec | None, hidden: int) -> tuple[WeightSpec, ...]:
    if attention is None:
        return ()
    query, key_value = attention.query_heads * attention.head_dim, attention.kv_heads * attention.head_dim
    if attention.latent is not None:
        return _latent_weights(prefix, attention, attention.latent, hidden)
    norm, bias = attention.query_key_norm, attention.query_key_value_bias
    whole = attention.query_key_norm_span is NormSpan.PROJECTION
    return (
        *_matrix_weights(f"{prefix}.query", query, hidden, bias),
        *_matrix_weights(f"{prefix}.key", key_value, hidden, bias),
        *_matrix_weights(f"{prefix}.value", key_value, hidden, bias),
        *norm_weights(f"{prefix}.query_norm", norm, query if whole else attention.head_dim),
        *norm_weights(f"{prefix}.key_norm", norm, key_value if whole else attention.head_dim),
        *(
            (WeightSpec(f"{prefix}.{SINKS}", WeightKind.VECTOR, (attention.query_heads,)),)
            if attention.learned_sinks
            else ()
        ),
        *_matrix_weights(f"{prefix}.output", hidden, query, attention.output_bias),
    )


def _latent_weights(prefix: str, attention: AttentionSpec, latent: LatentSpec, hidden: int) -> tuple[WeightSpec, ...]:
    gains = (WeightSpec(f"{prefix}.{name}", WeightKind.VECTOR, (size,)) for name, size in latent.gains())
    matrices = (
        _matrix_weights(f"{prefix}.{name}", rows, columns, bias)
        for name, rows, columns, bias in latent.matrices(attention, hidden)
    )
    return (*gains, *(weight for pair in matrices for weight in pair))


def _feed_forward_weights(
    prefix: str, block: FeedForwardSpec | ExpertsSpec | None, hidden: int
) -> tuple[WeightSpec, ...]:
    if block is None:
        return ()
    if isinstance(block, ExpertsSpec):
        return _experts_weights(prefix, block, hidden)
    gate = _matrix_weights(f"{prefix}.gate", block.hidden_size, hidden, block.bias) if block.gated else ()
    return (
        *gate,
        *_matrix_weights(f"{prefix}.up", block.hidden_size, hidden, block.bias),
        *_matrix_weights(f"{prefix}.down", hidden, block.hidden_size, block.bias),
    )


def _experts_weights(prefix: str, block: ExpertsSpec, hidden: int) -> tuple[WeightSpec, ...]:
    """The router decides between experts by small differences, and is small: it counts among the vectors, which keep their precision."""
    routing, count = block.routing, block.routing.experts
    weights = [WeightSpec(f"{prefix}.{ROUTER}", WeightKind.VECTOR, (count, hidden))]
    if routing.bias:
        weights.append(WeightSpec(f"{prefix}.{ROUTER}.bias", WeightKind.VECTOR, (count,)))
    if routing.selection_bias:
        weights.append(WeightSpec(f"{prefix}.{SELECTION_BIAS}", WeightKind.VECTOR, (count,)))
    for expert in range(count):
        weights += _feed_forward_weights(expert_prefix(prefix, expert), block.expert, hidden)
    if block.shared is not None:
        weights += _feed_forward_weights(f"{prefix}.{SHARED}", block.shared, hidden)
    if block.shared_gate:
        weights.append(WeightSpec(f"{prefix}.{SHARED_GATE}", WeightKind.VECTOR, (1, hidden)))
    return tuple(weights)


def is_routed_matrix(weight: WeightSpec) -> bool:
    """Whether only some tokens meet this matrix: that of an expert."""
    return weight.kind is WeightKind.MATRIX and is_expert(weight.name)


def embedding_weights(spec: DecoderSpec) -> tuple[WeightSpec, ...]:
    """What the decoder reads before its first layer. Learned positions count among the vectors: they are never quantized."""
    weights = [WeightSpec(EMBEDDING, WeightKind.TABLE, (spec.vocab_size, spec.hidden_size))]
    if spec.learned_positions:
        weights.append(WeightSpec(POSITIONS, WeightKind.VECTOR, (spec.learned_positions, spec.hidden_size)))
    return (*weights, *norm_weights(EMBEDDING_NORM, spec.embedding_norm, spec.hidden_size))


def head_weights(spec: DecoderSpec) -> tuple[WeightSpec, ...]:
    """What the decoder reads after its last layer. A tied model has no separate head."""
    weights = list(norm_weights(FINAL_NORM, spec.final_norm, spec.hidden_size))
    if not spec.tied_embedding:
        weights.append(WeightSpec(HEAD, WeightKind.TABLE, (spec.vocab_size, spec.hidden_size)))
    if spec.head_bias:
        weights.append(WeightSpec(HEAD_BIAS, WeightKind.VECTOR, (spec.vocab_size,)))
    return tuple(weights)


def decoder_weights(spec: DecoderSpec) -> tuple[WeightSpec, ...]:
    """Every weight of the decoder."""
    layers = [weight for index in range(len(spec.layers)) for weight in layer_weights(spec, index)]
    return (*embedding_weights(spec), *layers, *head_weights(spec))


def head_name(spec: DecoderSpec) -> str:
    """The weight that the logits read: the embedding table itself when tied."""
    return EMBEDDING if spec.tied_embedding else HEAD


def parameter_count(spec: DecoderSpec) -> int:
    """Stored parameters; a tied table counts once."""
    return sum(weight.count for weight in decoder_weights(spec))


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
