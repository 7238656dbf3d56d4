"""Attention over a packed cache in plain integer operators.

Keys are cached transposed, [1, K, Hd, C], values as [1, K, C, Hd], so that both products read the cache as it lies. Each cached
vector has one fp16 scale (and optionally a zero point). Queries and probabilities are rounded to 8 bits per row, the products are
MatMulInteger, and scales are applied to the sums.

INT4 packs channel i in the low nibble and channel i + Hd / 2 in the high one. The low nibbles are never unpacked:
    byte - 136 = 16 * (high - 8) + (low - 8)
so a product with the bytes minus 16 times a product with the high nibbles is the product with the low ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.decoder.spec import AttentionSpec
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.kv_codec import LayerKvConstants, hadamard
from exporter.targets.onnx.graph import MICROSOFT, GraphBuilder, Value, soft_cap

SMALLEST_SCALE = 2.0**-24
"""fp16's smallest number, as in the codec."""

FINER = {True: 254.0, False: 255.0}
"""Steps of the second term per step of the first: for signed rows (what rounding left), for unsigned ones (what flooring left)."""


@dataclass(frozen=True)
class CachePart:
    """One tensor of a layer's cache: its shape with the axis of slots left open, and its type."""

    name: str
    slot_axis: int
    shape: tuple[int | str, ...]
    data_type: ir.DataType


def cache_parts(layer: int, attention: AttentionSpec, kv_format: KvFormat, slots: str) -> list[CachePart]:
    """The tensors that hold a layer's cache. `slots` names the open axis."""
    heads, width = attention.kv_heads, attention.head_dim
    if kv_format.scaling is KvScaling.NONE:
        codes = ir.DataType.FLOAT16
    else:
        codes = ir.DataType.INT8 if kv_format.bits == 8 else ir.DataType.UINT8
        width = width * kv_format.bits // 8
    prefix = f"layers.{layer}"
    parts = [
        CachePart(f"{prefix}.keys", 3, (1, heads, width, slots), codes),
        CachePart(f"{prefix}.values", 2, (1, heads, slots, width), codes),
    ]
    if kv_format.scaling is KvScaling.NONE:
        return parts
    for part in ("scale", "zero") if kv_format.zero_point else ("scale",):
        parts += [
            CachePart(f"{prefix}.key_{part}", 3, (1, heads, 1, slots), ir.DataType.FLOAT16),
            CachePart(f"{prefix}.value_{part}", 2, (1, heads, slots, 1), ir.DataType.FLOAT16),
        ]
    return parts


@dataclass
class CachedSide:
    """Keys or values of a layer as stored, in the order codes, scale, zero."""

    codes: Value
    scale: Value | None = None
    zero: Value | None = None


class CachedAttention:
    """Writes one layer's attention into a graph. S is the open axis of the chunk, C that of the slots."""

    def __init__(
        self,
        graph: GraphBuilder,
        layer: int,
        attention: AttentionSpec,
        kv_format: KvFormat,
        constants: LayerKvConstants,
        terms: int,
    ) -> None:
        self.graph, self.spec = graph, attention
        self.format, self.constants, self.terms = kv_format, constants, terms
        self.label = f"layers.{layer}"

    def encode(self, rows: Value, side: str) -> list[Value]:
        """New keys or values [1, S, K * Hd] -> what the cache stores, with the slots on their axis."""
        graph, spec = self.graph, self.spec
        constants = self.constants.key if side == "key" else self.constants.value
        rows = self._per_channel(rows, "Sub", f"{side}_center", constants.center.flatten().numpy(), 0.0)
        rows = self._per_channel(rows, "Mul", f"{side}_unbalance", (1 / constants.balance).flatten().numpy(), 1.0)
        split = graph.node("Reshape", rows, graph.integers(1, -1, spec.kv_heads, spec.head_dim))
        split = self._rotated(split)
        if side == "key":
            moved, channels = graph.node("Transpose", split, perm=[0, 2, 3, 1]), 2
        else:
            moved, channels = graph.node("Transpose", split, perm=[0, 2, 1, 3]), 3
        if self.format.scaling is KvScaling.NONE:
            return [graph.node("Cast", moved, to=ir.DataType.FLOAT16)]
        return self._encoded(moved, channels)

    def attend(self, query: Value, keys: CachedSide, values: CachedSide, mask: Value) -> Value:
        """Query [1, S, H * Hd], mask float [G * S, C] or [K, G * S, C] of zeros and minus infinities -> [1, S, H * Hd]."""
        graph, spec = self.graph, self.spec
        balance = self.constants.key.balance.repeat_interleave(spec.group, 0).flatten().numpy()
        query = self._per_channel(query, "Mul", "query_balance", balance * np.float32(spec.score_scale), 1.0)
        grouped = graph.node("Reshape", query, graph.integers(1, -1, spec.kv_heads, spec.group, spec.head_dim))
        grouped = self._rotated(graph.node("Transpose", grouped, perm=[0, 2, 3, 1, 4]))
        rows = graph.node("Reshape", grouped, graph.integers(1, spec.kv_heads, -1, spec.head_dim))
        scores = self._product_with_keys(rows, keys)
        if spec.score_cap is not None:
            scores = soft_cap(graph, scores, spec.score_cap)
        masked = graph.node("Add", scores, mask, name=f"{self.label}.masked_scores")
        weights = graph.node("Softmax", masked, axis=-1, name=f"{self.label}.probabilities")
        return self._restored(self._product_with_values(weights, values))

    def _encoded(self, rows: Value, channels: int) -> list[Value]:
        """One scale (and zero point) per vector, whose channels lie on axis `channels`."""
        graph, bits = self.graph, self.format.bits
        half, levels = 2 ** (bits - 1), 2**bits
        if self.format.zero_point:
            lowest = graph.node("ReduceMin", rows, graph.integers(channels), keepdims=1)
            highest = graph.node("ReduceMax", rows, graph.integers(channels), keepdims=1)
            scale = self._scale(graph.node("Div", graph.node("Sub", highest, lowest), graph.scalar(levels - 1)))
            zero = graph.node("Cast", lowest, to=ir.DataType.FLOAT16)
            shifted = graph.node("Sub", rows, graph.node("Cast", zero, to=ir.DataType.FLOAT))
            return [self._stored(self._rounded(shifted, scale, 0, levels - 1), channels), scale, zero]
        if self.format.positive_scales:
            largest = graph.node("ReduceMax", graph.node("Abs", rows), graph.integers(channels), keepdims=1)
            scale = self._scale(graph.node("Div", largest, graph.scalar(half - 1)))
            return [self._int8_codes(rows, scale, channels), scale]
        scale = self._signed_scale(rows, channels)
        lifted = graph.node("Add", self._rounded(rows, scale, -half, half - 1), graph.scalar(half))
        return [self._stored(lifted, channels), scale]

    def _int8_codes(self, rows: Value, scale: Value, channels: int) -> Value:
        """Divides, rounds to even and saturates in one operator: a block is a whole vector. Its scale must be float32: with fp16
        scales ONNX Runtime 1.31 fails while it runs."""
        real = self._float(scale)
        settings: dict[str, Any] = {
            "axis": channels,
            "block_size": self.spec.head_dim,
            "output_dtype": ir.DataType.INT8,
        }
        return self.graph.node("QuantizeLinear", rows, real, **settings)

    def _scale(self, positive: Value) -> Value:
        """fp16, never zero."""
        graph = self.graph
        return graph.node("Cast", graph.node("Max", positive, graph.scalar(SMALLEST_SCALE)), to=ir.DataType.FLOAT16)

    def _signed_scale(self, rows: Value, channels: int) -> Value:
        """The element of largest magnitude, with its sign, gets the code -2^(bits-1)."""
        graph = self.graph
        highest = graph.node("ReduceMax", rows, graph.integers(channels), keepdims=1)
        lowest = graph.node("ReduceMin", rows, graph.integers(channels), keepdims=1)
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

    def _stored(self, codes: Value, channels: int) -> Value:
        """Codes from 0 as the cache holds them: INT8 from -128, or nibbles in pairs (i, i + Hd / 2)."""
        graph = self.graph
        if self.format.bits == 8:
            return graph.node("Cast", graph.node("Sub", codes, graph.scalar(128)), to=ir.DataType.INT8)
        width = self.spec.head_dim // 2
        low, high = graph.nodes("Split", codes, graph.integers(width, width), count=2, axis=channels)
        pair = graph.node("Add", low, graph.node("Mul", high, graph.scalar(16)))
        return graph.node("Cast", pair, to=ir.DataType.UINT8)

    def _product_with_keys(self, rows: Value, keys: CachedSide) -> Value:
        """float [1, K, rows, Hd] times stored keys -> scores [1, K, rows, C]."""
        graph = self.graph
        if self.format.scaling is KvScaling.NONE:
            return graph.node("MatMul", rows, self._float(keys.codes))
        codes, scale = self._quantized_rows(rows, signed=True)
        if self.format.bits == 8:
            sums = graph.node("MatMulInteger", codes, keys.codes, graph.scalar(128, np.uint8))
        else:
            sums = self._nibble_scores(codes, keys.codes)
        scores = self._summed(sums, scale, signed=True)
        assert keys.scale is not None
        scores = graph.node("Mul", scores, self._float(keys.scale))
        if keys.zero is None:
            return scores
        sum_of_rows = graph.node("ReduceSum", rows, graph.integers(3), keepdims=1)
        return graph.node("Add", scores, graph.node("Mul", sum_of_rows, self._middle(keys)))

    def _product_with_values(self, weights: Value, values: CachedSide) -> Value:
        """Probabilities [1, K, rows, C] times stored values -> [1, K, rows, Hd]."""
        graph = self.graph
        if self.format.scaling is KvScaling.NONE:
            return graph.node("MatMul", weights, self._float(values.codes))
        assert values.scale is not None
        scale_row = self._as_row(self._float(values.scale))
        signed = not self.format.positive_scales
        codes, scale = self._quantized_rows(graph.node("Mul", weights, scale_row), signed)
        zero = graph.scalar(128 if signed else 0, np.uint8)
        if self.format.bits == 8:
            sums = graph.node("MatMulInteger", codes, values.codes, zero)
        else:
            sums = self._nibble_means(codes, values.codes, zero)
        mixed = self._summed(sums, scale, signed)
        if values.zero is None:
            return mixed
        middle = graph.node("Mul", weights, self._as_row(self._middle(values)))
        return graph.node("Add", mixed, graph.node("ReduceSum", middle, graph.integers(3), keepdims=1))

    def _quantized_rows(self, rows: Value, signed: bool) -> tuple[Value, Value]:
        """8-bit codes per row (zero point 128 when signed) and the row's scale [1, K, rows, 1]. In two terms, a second row of codes
        holds what the first one left, in steps a whole range finer."""
        graph = self.graph
        size = graph.node("Abs", rows) if signed else rows
        peak = graph.node("ReduceMax", size, graph.integers(3), keepdims=1)
        steps = 127 if signed else 255
        scale = graph.node("Mul", graph.node("Max", peak, graph.scalar(1e-20)), graph.scalar(1 / steps))
        exact = graph.node("Div", rows, scale)
        codes = graph.node("Round" if signed else "Floor", exact) if self.terms == 2 else graph.node("Round", exact)
        if self.terms == 2:
            rest = graph.node("Mul", graph.node("Sub", exact, codes), graph.scalar(FINER[signed]))
            codes = graph.node("Concat", codes, graph.node("Round", rest), axis=2)
        if signed:
            codes = graph.node("Add", codes, graph.scalar(128))
        return graph.node("Cast", codes, to=ir.DataType.UINT8), scale

    def _summed(self, sums: Value, scale: Value, signed: bool) -> Value:
        """int32 [1, K, terms * rows, n] -> float [1, K, rows, n]."""
        graph = self.graph
        real = graph.node("Cast", sums, to=ir.DataType.FLOAT)
        if self.terms == 2:
            coarse, fine = graph.nodes("Split", real, count=2, axis=2, num_outputs=2)
            real = graph.node("Add", coarse, graph.node("Mul", fine, graph.scalar(1 / FINER[signed])))
        return graph.node("Mul", real, scale)

    def _nibble_scores(self, codes: Value, packed: Value) -> Value:
        """uint8 [1, K, rows, Hd] times packed keys [1, K, Hd / 2, C] -> int32 [1, K, rows, C]."""
        graph, width = self.graph, self.spec.head_dim // 2
        zero, eight = graph.scalar(128, np.uint8), graph.scalar(8, np.uint8)
        low, high = graph.nodes("Split", codes, graph.integers(width, width), count=2, axis=3)
        upper = self._high_nibbles(packed)
        with_bytes = graph.node("MatMulInteger", low, packed, zero, graph.scalar(136, np.uint8))
        low_with_high = graph.node("MatMulInteger", low, upper, zero, eight)
        high_with_high = graph.node("MatMulInteger", high, upper, zero, eight)
        excess = graph.node("Mul", low_with_high, graph.scalar(16, np.int32))
        return graph.node("Add", graph.node("Sub", with_bytes, excess), high_with_high)

    def _nibble_means(self, codes: Value, packed: Value, zero: Value) -> Value:
        """uint8 [1, K, rows, C] times packed values [1, K, C, Hd / 2] -> int32 [1, K, rows, Hd]."""
        graph = self.graph
        with_bytes = graph.node("MatMulInteger", codes, packed, zero, graph.scalar(136, np.uint8))
        upper = graph.node("MatMulInteger", codes, self._high_nibbles(packed), zero, graph.scalar(8, np.uint8))
        lower = graph.node("Sub", with_bytes, graph.node("Mul", upper, graph.scalar(16, np.int32)))
        return graph.node("Concat", lower, upper, axis=3)

    def _high_nibbles(self, packed: Value) -> Value:
        """byte >> 4 for every byte, exactly: (byte - 7) / 16.05 rounds to it, in the fastest operator that ONNX Runtime has."""
        graph = self.graph
        one, zero = graph.scalar(1), graph.scalar(0, np.uint8)
        return graph.node(
            "QLinearMul",
            packed,
            one,
            graph.scalar(7, np.uint8),
            graph.scalar(1, np.uint8),
            one,
            zero,
            graph.scalar(16.05),
            zero,
            domain=MICROSOFT,
        )

    def _middle(self, side: CachedSide) -> Value:
        """Products use codes minus 8 (or 128): what a code of zero stands for moves to the middle of the range."""
        graph = self.graph
        assert side.scale is not None and side.zero is not None
        half = graph.scalar(2 ** (self.format.bits - 1))
        return graph.node("Add", self._float(side.zero), graph.node("Mul", self._float(side.scale), half))

    def _restored(self, mixed: Value) -> Value:
        """[1, K, G * S, Hd] -> [1, S, H * Hd], with the values' constants taken back."""
        graph, spec, constants = self.graph, self.spec, self.constants.value
        mixed = self._rotated(mixed)
        grouped = graph.node("Reshape", mixed, graph.integers(1, spec.kv_heads, spec.group, -1, spec.head_dim))
        by_token = graph.node("Transpose", grouped, perm=[0, 3, 1, 2, 4])
        flat = graph.node("Reshape", by_token, graph.integers(1, -1, spec.query_heads * spec.head_dim))
        balance = constants.balance.repeat_interleave(spec.group, 0).flatten().numpy()
        center = constants.center.repeat_interleave(spec.group, 0).flatten().numpy()
        flat = self._per_channel(flat, "Mul", "value_balance", balance, 1.0)
        return self._per_channel(flat, "Add", "value_center_added", center, 0.0)

    def _per_channel(self, value: Value, operator: str, name: str, constant: np.ndarray, neutral: float) -> Value:
        if bool((constant == neutral).all()):
            return value
        if bool((constant == constant[0]).all()):
            return self.graph.node(operator, value, self.graph.scalar(float(constant[0])))
        stored = self.graph.constant(f"{self.label}.{name}", constant.astype(np.float32))
        return self.graph.node(operator, value, stored)

    def _rotated(self, value: Value) -> Value:
        """The matrix is symmetric, so it is its own inverse."""
        if not self.format.rotation:
            return value
        matrix = hadamard(self.spec.head_dim).numpy()
        return self.graph.node("MatMul", value, self.graph.constant(f"hadamard_{self.spec.head_dim}", matrix))

    def _float(self, value: Value) -> Value:
        return self.graph.node("Cast", value, to=ir.DataType.FLOAT)

    def _as_row(self, column: Value) -> Value:
        """[1, K, C, 1] -> [1, K, 1, C]; the same numbers in the same order."""
        return self.graph.node("Reshape", column, self.graph.integers(1, self.spec.kv_heads, 1, -1))
