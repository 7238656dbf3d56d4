"""MilOps: interprets the decoder as one function of an ML Program, for S tokens at a time. See `layout.py` for shapes and types."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from exporter.decoder.cache import LayerCache
from exporter.decoder.recurrence import CausalConvolution, SelectiveScan, StateSpaceDual
from exporter.decoder.spec import Activation, AttentionSpec, DecoderSpec, NormSpec, RotarySpec
from exporter.targets.coreml.attention import CachedAttention
from exporter.targets.coreml.graph import FunctionGraph, Value
from exporter.targets.coreml.kv_state import CacheCodec, SlotWriter
from exporter.targets.coreml.layout import Layout
from exporter.targets.coreml.names import LOGITS, label
from exporter.targets.coreml.positions import Positions
from exporter.targets.coreml.recurrence import RecurrenceWriter
from exporter.targets.coreml.weights import StoredWeights
from exporter.targets.limits import WithoutExperts, WithoutLatents

SMALLEST_MAGNITUDE = 2.0**-14
"""Least divisor of a norm in fp16 arithmetic: the smallest number that hardware without subnormals has."""

NON_LINEARITIES = {
    Activation.SILU: "silu",
    Activation.RELU: "relu",
    Activation.GELU: "gelu",
    Activation.GELU_TANH: "gelu",
}


@dataclass(frozen=True)
class Tensor:
    """Hidden states, or heads when `heads` is not 0."""

    value: Value
    heads: int = 0


class MilOps(WithoutExperts, WithoutLatents):
    """Writes one function; see `decoder.ops.Ops`."""

    def __init__(
        self,
        graph: FunctionGraph,
        spec: DecoderSpec,
        stored: StoredWeights,
        layers: tuple[LayerCache, ...],
        codecs: tuple[CacheCodec, ...],
        positions: Positions,
    ) -> None:
        self.graph, self.spec, self.stored, self.layers, self.codecs = graph, spec, stored, layers, codecs
        self.layout: Layout = stored.layout
        self.places, self.tokens = positions, positions.tokens
        self.writer = SlotWriter(graph, self.layout, positions)
        self._recurrence = RecurrenceWriter(graph, stored, positions)

    def embedding(self, token_ids: Tensor, table: str) -> Tensor:
        graph, stored = self.graph, self.stored.matrix(self.graph, table)
        width = self.spec.hidden_size
        if not self.layout.channels_first:
            rows = graph.node("gather", label(f"{table}.rows"), x=stored, indices=token_ids.value, axis=0)
            return Tensor(graph.slice(rows, 2, 0, width))
        flat = graph.node("reshape", x=token_ids.value, shape=[self.tokens])
        rows = graph.node("gather", label(f"{table}.rows"), x=stored, indices=flat, axis=0)
        return Tensor(graph.slice(graph.node("transpose", x=rows, perm=[2, 1, 3, 0]), 1, 0, width))

    def positions(self, table: str) -> Tensor:
        graph, rows = self.graph, self.places.gathered(table, self.stored.vector(table))
        if self.layout.channels_first:
            rows = graph.node("transpose", x=rows, perm=[1, 0])
        shape = self.layout.flat_shape(self.tokens, self.spec.hidden_size)
        return Tensor(graph.node("reshape", x=rows, shape=shape))

    def linear(self, value: Tensor, matrix: str, bias: bool) -> Tensor:
        return Tensor(self._product(value.value, matrix, matrix, f"{matrix}.bias" if bias else None))

    def rms_norm(self, value: Tensor, gain: str, norm: NormSpec) -> Tensor:
        rows, axis = self.graph.cast(value.value, self.layout.between), self._channel_axis(value)
        normed = self._unit_groups(rows, norm) if norm.groups > 1 else self._unit_rows(rows, axis, norm.eps)
        stored = self._per_channel(gain, value)
        return Tensor(self.graph.node("mul", f"{gain}.normed", x=normed, y=stored), value.heads)

    def layer_norm(self, value: Tensor, gain: str, norm: NormSpec) -> Tensor:
        graph, axis = self.graph, self._channel_axis(value)
        rows = graph.cast(value.value, self.layout.between)
        mean = graph.node("reduce_mean", x=rows, axes=[axis], keep_dims=True)
        normed = self._unit_rows(graph.binary("sub", rows, mean), axis, norm.eps)
        scaled = graph.node("mul", f"{gain}.normed", x=normed, y=self._per_channel(gain, value))
        if norm.bias:
            scaled = graph.binary("add", scaled, self._per_channel(f"{gain}.bias", value))
        return Tensor(scaled, value.heads)

    def split(self, value: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        axis, ends = self.layout.channel_axis, itertools.accumulate(sizes)
        return tuple(
            Tensor(self.graph.slice(value.value, axis, end - size, end)) for size, end in zip(sizes, ends, strict=True)
        )

    def join(self, left: Tensor, right: Tensor) -> Tensor:
        parts = [self.graph.cast(part.value, self.layout.between) for part in (left, right)]
        return Tensor(self.graph.node("concat", values=parts, axis=self.layout.channel_axis))

    def split_heads(self, value: Tensor, heads: int) -> Tensor:
        width = value.value.shape[self.layout.channel_axis] // heads
        shape = self.layout.head_shape(self.tokens, heads, width)
        return Tensor(self.graph.node("reshape", x=value.value, shape=shape), heads)

    def rotary(self, value: Tensor, rotary: RotarySpec) -> Tensor:
        graph, axis, half = self.graph, self.layout.head_channel_axis, rotary.dimensions // 2
        rows, (cosine, sine) = graph.cast(value.value, self.layout.between), self.places.angles(rotary)
        first, second = graph.slice(rows, axis, 0, half), graph.slice(rows, axis, half, 2 * half)
        width = rows.shape[axis]
        parts = [
            graph.binary("sub", graph.binary("mul", first, cosine), graph.binary("mul", second, sine)),
            graph.binary("add", graph.binary("mul", second, cosine), graph.binary("mul", first, sine)),
        ]
        if 2 * half < width:
            parts.append(graph.slice(rows, axis, 2 * half, width))
        return Tensor(graph.node("concat", values=parts, axis=axis), value.heads)

    def attention(self, layer: int, attention: AttentionSpec, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        block = CachedAttention(self.graph, self.layout, self.places, self.writer, layer, attention)
        return Tensor(block.run(self.layers[layer], self.codecs[layer], query.value, key.value, value.value))

    def causal_convolution(self, layer: int, convolution: CausalConvolution, value: Tensor) -> Tensor:
        return Tensor(self._recurrence.convolve(layer, convolution, value.value))

    def selective_scan(
        self, layer: int, scan: SelectiveScan, value: Tensor, step: Tensor, entering: Tensor, leaving: Tensor
    ) -> Tensor:
        given = self._between(value, step, entering, leaving)
        return Tensor(self._recurrence.scan(layer, scan, *given))

    def state_space_dual(
        self, layer: int, dual: StateSpaceDual, value: Tensor, step: Tensor, entering: Tensor, leaving: Tensor
    ) -> Tensor:
        given = self._between(value, step, entering, leaving)
        return Tensor(self._recurrence.dual(layer, dual, *given))

    def activation(self, value: Tensor, kind: Activation) -> Tensor:
        settings = {}
        if kind in (Activation.GELU, Activation.GELU_TANH):
            settings = {"mode": "EXACT" if kind is Activation.GELU else "TANH_APPROXIMATION"}
        return Tensor(self.graph.node(NON_LINEARITIES[kind], x=value.value, **settings))

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        factors = [left.value, right.value]
        if left.value.dtype is not right.value.dtype:
            factors = [self.graph.cast(factor, self.layout.between) for factor in factors]
        return Tensor(self.graph.binary("mul", *factors))

    def add(self, left: Tensor, right: Tensor) -> Tensor:
        graph, kind = self.graph, self.layout.between
        return Tensor(graph.binary("add", graph.cast(left.value, kind), graph.cast(right.value, kind)))

    def logits(self, value: Tensor, table: str, bias: str | None = None) -> Tensor:
        return Tensor(self._product(value.value, table, f"{table}.product", bias))

    def soft_cap(self, value: Tensor, cap: float) -> Tensor:
        return Tensor(self.graph.soft_cap(value.value, cap), value.heads)

    def finish(self, logits: Tensor) -> None:
        """Declares the output [1, S, V]."""
        graph, value = self.graph, logits.value
        if self.layout.channels_first:
            by_token = value if self.tokens == 1 else graph.node("transpose", x=value, perm=[0, 3, 2, 1])
            value = graph.node("reshape", x=by_token, shape=[1, self.tokens, self.spec.vocab_size])
        graph.output(value, LOGITS)

    def _between(self, *values: Tensor) -> list[Value]:
        return [self.graph.cast(value.value, self.layout.between) for value in values]

    def _channel_axis(self, value: Tensor) -> int:
        return self.layout.head_channel_axis if value.heads else self.layout.channel_axis

    def _per_channel(self, name: str, value: Tensor) -> Value:
        """A stored vector in the shape that combines with `value`."""
        numbers = self.stored.vector(name)
        shaped = self.layout.per_head_channel(numbers) if value.heads else self.layout.per_channel(numbers)
        return self.graph.constant(name, shaped)

    def _product(self, value: Value, matrix: str, name: str, bias: str | None) -> Value:
        """A matrix times hidden states, fp16. A bias is added where and as its layout keeps numbers."""
        graph, layout = self.graph, self.layout
        rows = graph.padded(graph.cast(value, "fp16"), layout.channel_axis, self.stored.padded_columns(matrix))
        weight = self.stored.matrix(graph, matrix)
        count = weight.shape[0]
        if layout.channels_first:
            settings = (
                {} if bias is None else {"bias": graph.constant(bias, self.stored.vector(bias).astype(np.float16))}
            )
            return graph.node("conv", label(name), x=rows, weight=weight, pad_type="valid", **settings)
        zeros = graph.constant(f"zeros_{count}", np.zeros(count, np.float16))
        product = graph.node("linear", label(name), x=rows, weight=weight, bias=zeros)
        if bias is None:
            return product
        offset = graph.constant(bias, layout.per_channel(self.stored.vector(bias)))
        return graph.binary("add", graph.cast(product, layout.between), offset)

    def _unit_groups(self, rows: Value, norm: NormSpec) -> Value:
        """Each group of channels by itself."""
        graph, layout = self.graph, self.layout
        width = rows.shape[layout.channel_axis] // norm.groups
        split = graph.node("reshape", x=rows, shape=layout.head_shape(self.tokens, norm.groups, width))
        return graph.node("reshape", x=self._unit_rows(split, layout.head_channel_axis, norm.eps), shape=rows.shape)

    def _unit_rows(self, rows: Value, axis: int, eps: float) -> Value:
        """Divides by the root mean square. In fp16 the square of 256 overflows, so there the largest magnitude is divided out first."""
        graph = self.graph
        if self.layout.between == "fp32":
            mean = graph.node("reduce_mean", x=graph.binary("mul", rows, rows), axes=[axis], keep_dims=True)
            return graph.binary("mul", rows, graph.node("rsqrt", x=mean, epsilon=np.float32(eps)))
        peak = graph.node("reduce_max", x=graph.node("abs", x=rows), axes=[axis], keep_dims=True)
        peak = graph.binary("maximum", peak, SMALLEST_MAGNITUDE)
        scaled = graph.binary("real_div", rows, peak)
        floor = graph.node("real_div", x=np.float16(math.sqrt(eps)), y=peak)
        mean = graph.node("reduce_mean", x=graph.binary("mul", scaled, scaled), axes=[axis], keep_dims=True)
        total = graph.binary("add", mean, graph.binary("mul", floor, floor))
        return graph.binary("mul", scaled, graph.node("rsqrt", x=total))
