"""The weights that a decoder has: canonical names, shapes and kinds, in the order in which they are computed with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from exporter.decoder.experts import ROUTER, SELECTION_BIAS, SHARED, SHARED_GATE, expert_prefix, is_expert
from exporter.decoder.latent import LATENT, ROTARY_KEY, LatentSpec
from exporter.decoder.recurrence import Recurrence, SharedBlock, recurrent_weights
from exporter.decoder.spec import (
    AttentionSpec,
    DecoderSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LayerSpec,
    NormSpan,
    NormSpec,
)


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
