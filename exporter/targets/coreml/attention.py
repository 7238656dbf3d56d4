"""Attention of one layer over its states. Query heads that share a key head are folded into rows, so keys are never copied.

Rows use `scaled_dot_product_attention`, which Core ML fuses; channels first spell it out, because their keys lie as the product needs
them and values need no turn either.
"""

from __future__ import annotations

import math

import numpy as np

from exporter.decoder.cache import LayerCache
from exporter.decoder.spec import AttentionSpec
from exporter.targets.coreml.graph import FunctionGraph, Value
from exporter.targets.coreml.kv_state import CacheCodec, SideCodec, SlotWriter, state_parts
from exporter.targets.coreml.layout import Layout
from exporter.targets.coreml.positions import Positions


class CachedAttention:
    """Writes one layer's attention. Heads come as the layout has them, the result are hidden states of H * Hd channels."""

    def __init__(
        self,
        graph: FunctionGraph,
        layout: Layout,
        positions: Positions,
        writer: SlotWriter,
        layer: int,
        attention: AttentionSpec,
    ) -> None:
        self.graph, self.layout, self.positions, self.writer = graph, layout, positions, writer
        self.layer, self.spec, self.tokens = layer, attention, positions.tokens

    def run(self, ring: LayerCache, codec: CacheCodec, query: Value, key: Value, value: Value) -> Value:
        keys, values = self._cached("keys", key, ring, codec), self._cached("values", value, ring, codec)
        rows = self._query_rows(query, codec)
        mask = self.positions.mask(ring, self.spec)
        if self.spelled_out:
            mixed = self._attend(rows, keys, values, mask)
        else:
            name = f"layers_{self.layer}_attention"
            settings = {"query": rows, "key": keys, "value": values, "attn_mask": mask}
            mixed = self.graph.node("scaled_dot_product_attention", name, **settings)
        return self._restored(self._flat(mixed), codec)

    def _cached(self, side: str, rows: Value, ring: LayerCache, codec: CacheCodec) -> Value:
        """Writes one side's new vectors and gives everything that the cache then holds, prepared: fp16 [1, K, C, Hd] or [1, K, Hd, C]."""
        graph, layout, spec, constants = self.graph, self.layout, self.spec, codec.side(side)
        name = f"layers_{self.layer}_{side}"
        prepared = graph.cast(rows, layout.between)
        prepared = self._per_channel("sub", prepared, constants.center.numpy(), 0.0, f"{name}_center")
        prepared = self._per_channel("mul", prepared, 1 / constants.balance.numpy(), 1.0, f"{name}_unbalance")
        if not layout.channels_first:
            prepared = graph.node("transpose", x=prepared, perm=[0, 2, 1, 3])
        side_codec = SideCodec(graph, layout, codec.format, spec.head_dim)
        parts = state_parts(self.layer, side, spec, ring, codec.format)
        encoded = side_codec.encode(prepared)
        return side_codec.decode([self.writer.write(part, new, ring) for part, new in zip(parts, encoded, strict=True)])

    def _query_rows(self, query: Value, codec: CacheCodec) -> Value:
        """fp16 [1, K, G * S, Hd], scaled so that products with keys are scores."""
        graph, layout, spec = self.graph, self.layout, self.spec
        balance = np.repeat(codec.constants.key.balance.numpy(), spec.group, axis=0)
        scale = spec.score_scale if self.spelled_out else spec.score_scale * math.sqrt(spec.head_dim)
        if math.isclose(scale, 1.0, rel_tol=1e-6):
            scale = 1.0
        scaled = graph.cast(query, layout.between)
        scaled = self._per_channel(
            "mul", scaled, balance * np.float32(scale), 1.0, f"layers_{self.layer}_query_balance"
        )
        folded = [1, spec.kv_heads, spec.group * self.tokens, spec.head_dim]
        if not layout.channels_first:
            by_head = graph.node("transpose", x=graph.cast(scaled, "fp16"), perm=[0, 2, 1, 3])
            return graph.node("reshape", x=by_head, shape=folded)
        if self.tokens > 1:
            scaled = graph.node("transpose", x=scaled, perm=[0, 1, 3, 2])
        return graph.node("reshape", x=scaled, shape=folded)

    @property
    def spelled_out(self) -> bool:
        """The fused operator has no place for a cap, and wants the channels last."""
        return self.layout.channels_first or self.spec.score_cap is not None

    def _attend(self, rows: Value, keys: Value, values: Value, mask: Value) -> Value:
        graph, name, channels_first = self.graph, f"layers_{self.layer}", self.layout.channels_first
        scores = graph.node("matmul", f"{name}_scores", x=rows, y=keys, transpose_y=not channels_first)
        if self.spec.score_cap is not None:
            scores = graph.soft_cap(scores, self.spec.score_cap)
        weights = graph.node("softmax", f"{name}_probabilities", x=graph.binary("add", scores, mask), axis=-1)
        return graph.node("matmul", f"{name}_mixed", x=weights, y=values, transpose_y=channels_first)

    def _flat(self, mixed: Value) -> Value:
        """[1, K, G * S, Hd] -> hidden states."""
        graph, spec, tokens = self.graph, self.spec, self.tokens
        channels = spec.query_heads * spec.head_dim
        if tokens > 1:
            by_head = graph.node("reshape", x=mixed, shape=[1, spec.query_heads, tokens, spec.head_dim])
            perm = [0, 1, 3, 2] if self.layout.channels_first else [0, 2, 1, 3]
            mixed = graph.node("transpose", x=by_head, perm=perm)
        return graph.node("reshape", x=mixed, shape=self.layout.flat_shape(tokens, channels))

    def _restored(self, flat: Value, codec: CacheCodec) -> Value:
        """Takes the values' constants back."""
        graph, layout, constants = self.graph, self.layout, codec.constants.value
        name = f"layers_{self.layer}_values"
        for operator, numbers, neutral in (("mul", constants.balance, 1.0), ("add", constants.center, 0.0)):
            repeated = np.repeat(numbers.numpy(), self.spec.group, axis=0).reshape(-1)
            if (repeated == neutral).all():
                continue
            stored = graph.constant(f"{name}_{operator}_back", layout.per_channel(repeated))
            flat = graph.binary(operator, graph.cast(flat, layout.between), stored)
        return flat

    def _per_channel(self, operator: str, heads: Value, numbers: np.ndarray, neutral: float, name: str) -> Value:
        """Combines heads with constants [heads, Hd]."""
        if (numbers == neutral).all():
            return heads
        if (numbers == numbers.flat[0]).all():
            return self.graph.binary(operator, heads, float(numbers.flat[0]))
        return self.graph.binary(operator, heads, self.graph.constant(name, self.layout.per_head_channel(numbers)))
