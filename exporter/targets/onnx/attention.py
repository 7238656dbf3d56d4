"""Attention over a packed cache in plain integer operators (see `kv_encoding` for what is stored).

Queries and probabilities are rounded to 8 bits per row, the products are MatMulInteger, and scales are applied to the sums.

The low nibbles of INT4 are never unpacked:
    byte - 136 = 16 * (high - 8) + (low - 8)
so a product with the bytes minus 16 times a product with the high nibbles is the product with the low ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.decoder.spec import AttentionSpec
from exporter.quantize.formats import KvFormat
from exporter.quantize.kv_codec import ChannelConstants, LayerKvConstants
from exporter.targets.onnx.graph import MICROSOFT, GraphBuilder, Value, soft_cap
from exporter.targets.onnx.kv_encoding import StoredLayer, per_channel, rotated

FINER = {True: 254.0, False: 255.0}
"""Steps of the second term per step of the first: for signed rows (what rounding left), for unsigned ones (what flooring left)."""

SMALLEST_PEAK = 1e-20
"""A row of zeros is divided by this."""


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

    def attend(
        self, query: Value, stored: StoredLayer, mask: Value, middle: Value, beside: Value | None = None
    ) -> Value:
        """Query [1, S, H * Hd], mask float [G * S, C] or [K, G * S, C] of zeros and minus infinities, `middle` uint8 [1, K, G * S, 1] of
        128, `beside` float [1, K, G * S, 1] the learned sinks of a layer that has them -> [1, S, H * Hd]."""
        graph, spec = self.graph, self.spec
        balance = self.constants.key.balance.repeat_interleave(spec.group, 0) * spec.score_scale
        query = per_channel(graph, query, "Mul", f"{self.label}.query_balance", balance, 1.0)
        by_token = graph.node("Reshape", query, graph.integers(1, -1, spec.query_heads, spec.head_dim))
        by_head = graph.node("Transpose", by_token, perm=[0, 2, 1, 3])
        by_head = rotated(graph, by_head, self.format, spec.head_dim)
        rows = graph.node("Reshape", by_head, graph.integers(1, spec.kv_heads, -1, spec.head_dim))
        values, of_values = stored.values, self.constants.value
        if values is None:
            values, of_values = graph.node("Transpose", stored.keys, perm=[0, 1, 3, 2]), self.constants.key
        scales, zeros = self._sides(stored.scales), self._sides(stored.zeros)
        scores = self._product_with_keys(rows, stored.keys, scales[0], zeros[0], middle)
        if spec.score_cap is not None:
            scores = soft_cap(graph, scores, spec.score_cap)
        masked = graph.node("Add", scores, mask, name=f"{self.label}.masked_scores")
        weights = self._probabilities(masked, beside)
        return self._restored(self._product_with_values(weights, values, scales[1], zeros[1]), of_values)

    def _probabilities(self, scores: Value, beside: Value | None) -> Value:
        graph, name = self.graph, f"{self.label}.probabilities"
        if beside is None:
            return graph.node("Softmax", scores, axis=-1, name=name)
        whole = graph.node("Softmax", graph.node("Concat", scores, beside, axis=3), axis=-1, name=name)
        return graph.node("Slice", whole, graph.integers(0), graph.integers(-1), graph.integers(3))

    def _sides(self, stored: Value | None) -> tuple[Value, Value] | tuple[None, None]:
        """fp16 [1, 2 * K, 1, C] -> those of keys and those of values, float [1, K, 1, C]."""
        if stored is None:
            return None, None
        if self.spec.latent is not None:
            return (self._float(stored),) * 2
        heads = self.graph.integers(self.spec.kv_heads, self.spec.kv_heads)
        key, value = self.graph.nodes("Split", self._float(stored), heads, count=2, axis=1)
        return key, value

    def _product_with_keys(
        self, rows: Value, keys: Value, scale: Value | None, zero: Value | None, middle: Value
    ) -> Value:
        """float [1, K, rows, Hd] times stored keys -> scores [1, K, rows, C]."""
        graph = self.graph
        if scale is None:
            return graph.node("MatMul", rows, self._float(keys))
        codes, row_scale = self._quantized_signed(rows, middle)
        if self.format.bits == 8:
            sums = graph.node("MatMulInteger", codes, keys, graph.scalar(128, np.uint8))
        else:
            sums = self._nibble_scores(codes, keys)
        scores = graph.node("Mul", self._summed(sums, row_scale, signed=True), scale)
        if zero is None:
            return scores
        sum_of_rows = graph.node("ReduceSum", rows, graph.integers(3), keepdims=1)
        return graph.node("Add", scores, graph.node("Mul", sum_of_rows, self._middle(scale, zero)))

    def _product_with_values(self, weights: Value, values: Value, scale: Value | None, zero: Value | None) -> Value:
        """Probabilities [1, K, rows, C] times stored values -> [1, K, rows, Hd]."""
        graph, signed = self.graph, not self.format.positive_scales
        if scale is None:
            return graph.node("MatMul", weights, self._float(values))
        scaled = graph.node("Mul", weights, scale)
        codes, row_scale = self._quantized_rows(scaled) if signed else self._quantized_positive(scaled)
        code_of_zero = graph.scalar(128 if signed else 0, np.uint8)
        if self.format.bits == 8:
            sums = graph.node("MatMulInteger", codes, values, code_of_zero)
        else:
            sums = self._nibble_means(codes, values, code_of_zero)
        mixed = self._summed(sums, row_scale, signed)
        if zero is None:
            return mixed
        shifted = graph.node("Mul", weights, self._middle(scale, zero))
        return graph.node("Add", mixed, graph.node("ReduceSum", shifted, graph.integers(3), keepdims=1))

    def _quantized_signed(self, rows: Value, middle: Value) -> tuple[Value, Value]:
        """Rows of one vector each, whose width is known: in one term, one operator rounds and saturates a whole row."""
        if self.terms == 2:
            return self._quantized_rows(rows)
        scale = self._row_scale(self.graph.node("Abs", rows), 127, guarded=True)
        settings: dict[str, Any] = {"axis": 3, "block_size": self.spec.head_dim}
        return self.graph.node("QuantizeLinear", rows, scale, middle, **settings), scale

    def _quantized_rows(self, rows: Value) -> tuple[Value, Value]:
        """8-bit codes around 128 per row and the row's scale [1, K, rows, 1]. In two terms, a second row of codes holds what the first
        one left, in steps a whole range finer."""
        graph = self.graph
        scale = self._row_scale(graph.node("Abs", rows), 127, guarded=True)
        exact = graph.node("Div", rows, scale)
        codes = graph.node("Round", exact)
        if self.terms == 2:
            codes = self._with_finer(exact, codes, FINER[True])
        lifted = graph.node("Add", codes, graph.scalar(128))
        return graph.node("Cast", lifted, to=ir.DataType.UINT8), scale

    def _quantized_positive(self, rows: Value) -> tuple[Value, Value]:
        """The same for rows that sum to something: codes from 0 to 255."""
        graph = self.graph
        scale = self._row_scale(rows, 255, guarded=False)
        exact = graph.node("Div", rows, scale)
        codes = graph.node("Floor" if self.terms == 2 else "Round", exact)
        if self.terms == 2:
            codes = self._with_finer(exact, codes, FINER[False])
        return graph.node("Cast", codes, to=ir.DataType.UINT8), scale

    def _row_scale(self, size: Value, steps: int, guarded: bool) -> Value:
        graph = self.graph
        peak = graph.node("ReduceMax", size, graph.integers(3), keepdims=1)
        if guarded:
            peak = graph.node("Max", peak, graph.scalar(SMALLEST_PEAK))
        return graph.node("Mul", peak, graph.scalar(1 / steps))

    def _with_finer(self, exact: Value, codes: Value, finer: float) -> Value:
        graph = self.graph
        rest = graph.node("Mul", graph.node("Sub", exact, codes), graph.scalar(finer))
        return graph.node("Concat", codes, graph.node("Round", rest), axis=2)

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

    def _middle(self, scale: Value, zero: Value) -> Value:
        """Products use codes minus 8 (or 128): what a code of zero stands for moves to the middle of the range."""
        graph = self.graph
        return graph.node("Add", zero, graph.node("Mul", scale, graph.scalar(2 ** (self.format.bits - 1))))

    def _restored(self, mixed: Value, constants: ChannelConstants) -> Value:
        """[1, K, G * S, Hd] -> [1, S, H * Hd], with the values' constants taken back."""
        graph, spec = self.graph, self.spec
        mixed = rotated(graph, mixed, self.format, spec.head_dim)
        by_head = graph.node("Reshape", mixed, graph.integers(1, spec.query_heads, -1, spec.head_dim))
        by_token = graph.node("Transpose", by_head, perm=[0, 2, 1, 3])
        flat = graph.node("Reshape", by_token, graph.integers(1, -1, spec.query_heads * spec.head_dim))
        balance, center = (part.repeat_interleave(spec.group, 0) for part in (constants.balance, constants.center))
        flat = per_channel(graph, flat, "Mul", f"{self.label}.value_balance", balance, 1.0)
        return per_channel(graph, flat, "Add", f"{self.label}.value_center", center, 0.0)

    def _float(self, value: Value) -> Value:
        return self.graph.node("Cast", value, to=ir.DataType.FLOAT)
