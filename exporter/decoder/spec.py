"""DecoderSpec: a model family as data. Everything that a target needs to build the decoder, and no weight.

Notation: S tokens in this chunk, C cache slots, D hidden size, H query heads, K key/value heads, Hd head dimension, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Activation(StrEnum):
    """Elementwise non-linearity of the feed-forward block."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"


class RotaryScalingKind(StrEnum):
    """How rotary frequencies are stretched for long contexts."""

    LINEAR = "linear"
    LLAMA3 = "llama3"
    YARN = "yarn"


@dataclass(frozen=True)
class RotaryScaling:
    """Parameters of one rotary scaling rule; unused ones keep their defaults."""

    kind: RotaryScalingKind
    factor: float
    original_context: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True)
class RotarySpec:
    """Rotary position embedding (RoFormer, arXiv 2104.09864) in the half-split layout.

    `dimensions` is the number of leading channels of a head that are rotated; the rest pass through.
    """

    dimensions: int
    theta: float
    scaling: RotaryScaling | None = None


@dataclass(frozen=True)
class NormSpec:
    """Root-mean-square normalization (arXiv 1910.07467) over the last axis."""

    eps: float


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention of one layer. `window` counts the positions that a token sees, itself included."""

    query_heads: int
    kv_heads: int
    head_dim: int
    score_scale: float
    rotary: RotarySpec | None
    window: int | None = None
    query_key_norm: NormSpec | None = None
    query_key_value_bias: bool = False
    output_bias: bool = False

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.query_heads // self.kv_heads


@dataclass(frozen=True)
class FeedForwardSpec:
    """Gated feed-forward block: down(activation(gate(x)) * up(x))."""

    hidden_size: int
    activation: Activation
    bias: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """One pre-norm decoder layer."""

    attention_norm: NormSpec
    attention: AttentionSpec
    feed_forward_norm: NormSpec
    feed_forward: FeedForwardSpec


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only language model."""

    family: str
    vocab_size: int
    hidden_size: int
    context_limit: int
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    tied_embedding: bool


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
HEAD = "head"
FINAL_NORM = "final_norm"


SHARED_INPUTS = {
    "attention.key": "attention.query",
    "attention.value": "attention.query",
    "feed_forward.up": "feed_forward.gate",
}
"""Matrices that read the same input as another one: they share its covariance, and a target may fuse their products."""


def layer_weights(spec: DecoderSpec, index: int) -> tuple[WeightSpec, ...]:
    """Every weight of layer `index`, in the order in which the forward pass uses them."""
    layer, prefix, hidden = spec.layers[index], f"layers.{index}", spec.hidden_size
    attention, inner = layer.attention, layer.feed_forward.hidden_size
    query, key_value = attention.query_heads * attention.head_dim, attention.kv_heads * attention.head_dim
    weights = [WeightSpec(f"{prefix}.attention_norm", WeightKind.VECTOR, (hidden,))]

    def matrix(name: str, rows: int, columns: int, bias: bool) -> None:
        weights.append(WeightSpec(f"{prefix}.{name}", WeightKind.MATRIX, (rows, columns)))
        if bias:
            weights.append(WeightSpec(f"{prefix}.{name}.bias", WeightKind.VECTOR, (rows,)))

    matrix("attention.query", query, hidden, attention.query_key_value_bias)
    matrix("attention.key", key_value, hidden, attention.query_key_value_bias)
    matrix("attention.value", key_value, hidden, attention.query_key_value_bias)
    if attention.query_key_norm is not None:
        weights.append(WeightSpec(f"{prefix}.attention.query_norm", WeightKind.VECTOR, (attention.head_dim,)))
        weights.append(WeightSpec(f"{prefix}.attention.key_norm", WeightKind.VECTOR, (attention.head_dim,)))
    matrix("attention.output", hidden, query, attention.output_bias)
    weights.append(WeightSpec(f"{prefix}.feed_forward_norm", WeightKind.VECTOR, (hidden,)))
    matrix("feed_forward.gate", inner, hidden, layer.feed_forward.bias)
    matrix("feed_forward.up", inner, hidden, layer.feed_forward.bias)
    matrix("feed_forward.down", hidden, inner, layer.feed_forward.bias)
    return tuple(weights)


def decoder_weights(spec: DecoderSpec) -> tuple[WeightSpec, ...]:
    """Every weight of the decoder. A tied model has no separate head."""
    weights = [WeightSpec(EMBEDDING, WeightKind.TABLE, (spec.vocab_size, spec.hidden_size))]
    for index in range(len(spec.layers)):
        weights.extend(layer_weights(spec, index))
    weights.append(WeightSpec(FINAL_NORM, WeightKind.VECTOR, (spec.hidden_size,)))
    if not spec.tied_embedding:
        weights.append(WeightSpec(HEAD, WeightKind.TABLE, (spec.vocab_size, spec.hidden_size)))
    return tuple(weights)


def head_name(spec: DecoderSpec) -> str:
    """The weight that the logits read: the embedding table itself when tied."""
    return EMBEDDING if spec.tied_embedding else HEAD


def parameter_count(spec: DecoderSpec) -> int:
    """Stored parameters; a tied table counts once."""
    return sum(weight.count for weight in decoder_weights(spec))
