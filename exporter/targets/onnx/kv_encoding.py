"""What a packed cache stores, and how new keys and values become it, in plain operators.

Keys are cached transposed, [1, K, Hd, C], values as [1, K, C, Hd], so that both products read the cache as it lies. Each cached
vector has one fp16 scale (and optionally a zero point); those of keys lie above those of values, [1, 2 * K, 1, C]. Keys and values
are encoded together: every operator costs some microseconds beside its arithmetic, whatever the model's size.

INT4 packs channel i in the low nibble and channel i + Hd / 2 in the high one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from exporter.decoder.spec import AttentionSpec
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.kv_codec import LayerKvConstants, hadamard
from exporter.targets.onnx.graph import GraphBuilder, Value

SMALLEST_SCALE = 2.0**-24
"""fp16's smallest number, as in the codec."""

CHANNELS = 3
"""Axis of a vector's channels while it is encoded: [1, S, 2 * K, Hd]."""


@dataclass(frozen=True)
class CachePart:
    """One tensor of a layer's cache: its shape with the axis of slots left open, and its type."""

    name: str
    slot_axis: int
    shape: tuple[int | str, ...]
    data_type: ir.DataType


@dataclass
class StoredLayer:
    """A layer's cache in the order of `cache_parts`, before or after new vectors are written. Latents are in `keys` alone."""

    keys: Value
    values: Value | None = None
    scales: Value | None = None
    zeros: Value | None = None


def cache_parts(layer: int, attention: AttentionSpec, kv_format: KvFormat, slots: str) -> list[CachePart]:
    """The tensors that hold a layer's cache. `slots` names the open axis."""
    heads, width = attention.kv_heads, attention.head_dim
    if kv_format.scaling is KvScaling.NONE:
        codes = ir.DataType.FLOAT16
    else:
        codes = ir.DataType.INT8 if kv_format.bits == 8 else ir.DataType.UINT8
        width = width * kv_format.bits // 8
    prefix, sides = f"layers.{layer}", 1 if attention.latent else 2
    parts = [CachePart(f"{prefix}.keys", 3, (1, heads, width, slots), codes)]
    if sides == 2:
        parts.append(CachePart(f"{prefix}.values", 2, (1, heads, slots, width), codes))
    if kv_format.scaling is not KvScaling.NONE:
        for name in ("scales", "zeros") if kv_format.zero_point else ("scales",):
            parts.append(CachePart(f"{prefix}.{name}", 3, (1, sides * heads, 1, slots), ir.DataType.FLOAT16))
    return parts


class CacheEncoder:
    """Writes one layer's codec into a graph. S is the open axis of the chunk."""

    def __init__(
        self,
        graph: GraphBuilder,
        layer: int,
        attention: AttentionSpec,
        kv_format: KvFormat,
        constants: LayerKvConstants,
    ) -> None:
        self.graph, self.spec, self.format, self.constants = graph, attention, kv_format, constants
        self.label = f"layers.{layer}"

    def encode_latents(self, key: Value) -> StoredLayer:
        """New vectors [1, S, Hd] that are keys and values at once -> what the cache stores."""
        graph, constants, width = self.graph, self.constants.key, self.spec.head_dim
        rows = per_channel(graph, key, "Sub", f"{self.label}.cache_center", constants.center, 0.0)
        rows = per_channel(graph, rows, "Mul", f"{self.label}.cache_unbalance", 1 / constants.balance, 1.0)
        split = graph.node("Reshape", rows, graph.integers(1, -1, 1, width))
        codes, *factors = (
            graph.node("Transpose", part, perm=[0, 2, 3, 1])
            for part in self._codes(rotated(graph, split, self.format, width))
        )
        return StoredLayer(codes, None, *factors)

    def encode(self, key: Value, value: Value) -> StoredLayer:
        """New keys and values [1, S, K * Hd] each -> what the cache stores, with the slots on their axes."""
        graph, heads, constants = self.graph, self.spec.kv_heads, self.constants
        rows = graph.node("Concat", key, value, axis=2, name=f"{self.label}.keys_and_values")
        center = torch.cat((constants.key.center, constants.value.center))
        balance = torch.cat((constants.key.balance, constants.value.balance))
        rows = per_channel(graph, rows, "Sub", f"{self.label}.cache_center", center, 0.0)
        rows = per_channel(graph, rows, "Mul", f"{self.label}.cache_unbalance", 1 / balance, 1.0)
        split = graph.node("Reshape", rows, graph.integers(1, -1, 2 * heads, self.spec.head_dim))
        codes, *factors = self._codes(rotated(graph, split, self.format, self.spec.head_dim))
        keys, values = graph.nodes("Split", codes, graph.integers(heads, heads), count=2, axis=2)
        return StoredLayer(
            graph.node("Transpose", keys, perm=[0, 2, 3, 1]),
            graph.node("Transpose", values, perm=[0, 2, 1, 3]),
            *(graph.node("Transpose", factor, perm=[0, 2, 3, 1]) for factor in factors),
        )

    def _codes(self, rows: Value) -> tuple[Value, ...]:
        """float [1, S, 2 * K, Hd] -> codes, then scales (and zero points) [1, S, 2 * K, 1]. They are moved to their slots afterwards:
        ONNX Runtime 1.31 pulls a Transpose through a blocked QuantizeLinear without transposing its scales."""
        graph, bits = self.graph, self.format.bits
        half, levels = 2 ** (bits - 1), 2**bits
        if self.format.scaling is KvScaling.NONE:
            return (graph.node("Cast", rows, to=ir.DataType.FLOAT16),)
        if self.format.zero_point:
            lowest, highest = self._reduced("ReduceMin", rows), self._reduced("ReduceMax", rows)
            scale = self._scale(graph.node("Sub", highest, lowest), levels - 1)
            zero = graph.node("Cast", lowest, to=ir.DataType.FLOAT16)
            shifted = graph.node("Sub", rows, graph.node("Cast", zero, to=ir.DataType.FLOAT))
            return self._stored(self._rounded(shifted, scale, 0, levels - 1)), scale, zero
        if self.format.positive_scales:
            scale = self._scale(self._reduced("ReduceMax", graph.node("Abs", rows)), half - 1)
            return self._int8_codes(rows, scale), scale
        scale = self._signed_scale(rows)
        lifted = graph.node("Add", self._rounded(rows, scale, -half, half - 1), graph.scalar(half))
        return self._stored(lifted), scale

    def _reduced(self, operator: str, rows: Value) -> Value:
        return self.graph.node(operator, rows, self.graph.integers(CHANNELS), keepdims=1)

    def _int8_codes(self, rows: Value, scale: Value) -> Value:
        """Divides, rounds to even and saturates in one operator: a block is a whole vector. Its scale must be float32: with fp16
        scales ONNX Runtime 1.31 fails while it runs."""
        settings: dict[str, Any] = {"block_size": self.spec.head_dim, "output_dtype": ir.DataType.INT8}
        real = self.graph.node("Cast", scale, to=ir.DataType.FLOAT)
        return self.graph.node("QuantizeLinear", rows, real, axis=CHANNELS, **settings)

    def _scale(self, extent: Value, steps: int) -> Value:
        """fp16, never zero."""
        graph = self.graph
        positive = graph.node("Max", graph.node("Div", extent, graph.scalar(steps)), graph.scalar(SMALLEST_SCALE))
        return graph.node("Cast", positive, to=ir.DataType.FLOAT16)

    def _signed_scale(self, rows: Value) -> Value:
        """The element of largest magnitude, with its sign, gets the code -2^(bits-1)."""
        graph = self.graph
        lowest, highest = self._reduced("ReduceMin", rows), self._reduced("ReduceMax", rows)
        upward = graph.node("Greater", highest, graph.node("Neg", lowest))
        peak = graph.node("Where", upward, highest, lowest)
        half = graph.scalar(-(2 ** (self.format.bits - 1)))
        scale = graph.node("Cast", graph.node("Div", peak, half), to=ir.DataType.FLOAT16)
        dead = graph.node("Equal", scale, graph.scalar(0, np.float16))
        return graph.node("Where", dead, graph.scalar(SMALLEST_SCALE, np.float16), scale)

    def _rounded(self, rows: Value, scale: Value, low: int, high: int) -> Value:
        graph = self.graph
        divided = graph.node("Div", rows, graph.node("Cast", scale, to=ir.DataType.FLOAT))
        return graph.node("Clip", graph.node("Round", divided), graph.scalar(low), graph.scalar(high))

    def _stored(self, codes: Value) -> Value:
        """Codes from 0 as the cache holds them: INT8 from -128, or nibbles in pairs (i, i + Hd / 2)."""
        graph = self.graph
        if self.format.bits == 8:
            return graph.node("Cast", graph.node("Sub", codes, graph.scalar(128)), to=ir.DataType.INT8)
        width = self.spec.head_dim // 2
        low, high = graph.nodes("Split", codes, graph.integers(width, width), count=2, axis=CHANNELS)
        pair = graph.node("Add", low, graph.node("Mul", high, graph.scalar(16)))
        return graph.node("Cast", pair, to=ir.DataType.UINT8)


def per_channel(
    graph: GraphBuilder, value: Value, operator: str, name: str, constant: torch.Tensor, neutral: float
) -> Value:
    """[1, S, heads * Hd] with a constant [heads, Hd]; nothing where that changes nothing."""
    numbers = constant.flatten().numpy()
    if bool((numbers == neutral).all()):
        return value
    if bool((numbers == numbers[0]).all()):
        return graph.node(operator, value, graph.scalar(float(numbers[0])))
    return graph.node(operator, value, graph.constant(name, numbers.astype(np.float32)))


def rotated(graph: GraphBuilder, value: Value, kv_format: KvFormat, head_dim: int) -> Value:
    """Vectors [..., Hd] times the Hadamard matrix, which is symmetric and so its own inverse."""
    if not kv_format.rotation:
        return value
    return graph.node("MatMul", value, graph.constant(f"hadamard_{head_dim}", hadamard(head_dim).numpy()))
