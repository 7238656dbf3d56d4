"""Attention as one com.microsoft::GroupQueryAttention per layer: the operator that other exporters use.

Its cache, [1, K, C, Hd] for keys and for values, holds a slot for every position of the context: the operator counts slots as
positions, so that there is no ring, and a window only masks. Floats are cached as they are (float32 or fp16); INT8 and INT4 codes have
one static scale per channel, which is what the static codec's balance is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.decoder.cache import LayerCache
from exporter.decoder.spec import AttentionSpec
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.kv_codec import ChannelConstants, LayerKvConstants
from exporter.targets.onnx.graph import MICROSOFT, GraphBuilder, Value
from exporter.targets.onnx.names import PAST, PRESENT

CACHE_TYPES = {32: ir.DataType.FLOAT, 16: ir.DataType.FLOAT16, 8: ir.DataType.INT8, 4: ir.DataType.UINT8}

FIRST_SCALE_INPUT = 12
"""Place of the key scales among the operator's inputs; the value scales follow."""


class GroupedQueryAttention:
    """Writes the operator for every layer of one graph. S is the open axis of the chunk."""

    def __init__(self, graph: GraphBuilder, kv_format: KvFormat, positions: Value) -> None:
        """`positions` is int64 [1, S]; the operator wants the last one, and how many tokens there are with it."""
        self.graph, self.format = graph, kv_format
        last = graph.node("Gather", positions, graph.scalar(-1, np.int64), axis=1, name="last_position")
        self._last = graph.node("Cast", last, to=ir.DataType.INT32)
        self._total = graph.node(
            "Squeeze", graph.node("Add", self._last, graph.scalar(1, np.int32)), name="total_length"
        )

    def attend(
        self,
        layer: int,
        attention: AttentionSpec,
        ring: LayerCache,
        constants: LayerKvConstants,
        query: Value,
        key: Value,
        value: Value,
    ) -> Value:
        """Query [1, S, H * Hd], key and value [1, S, K * Hd], rotated -> [1, S, H * Hd]; declares both ends of the cache."""
        graph, name = self.graph, f"layers.{layer}"
        key = self._shifted(key, "Sub", f"{name}.key_center", constants.key)
        value = self._shifted(value, "Sub", f"{name}.value_center", constants.value)
        width = attention.head_dim // 2 if self.format.bits == 4 else attention.head_dim
        shape = (1, attention.kv_heads, f"slots.{ring.name}", width)
        data_type, parts = CACHE_TYPES[self.format.bits], (f"{name}.keys", f"{name}.values")
        inputs: list[Value | None] = [self._typed(rows) for rows in (query, key, value)]
        inputs += [graph.input(f"{PAST}.{part}", data_type, shape) for part in parts] + [self._last, self._total]
        settings: dict[str, Any] = {"num_heads": attention.query_heads, "kv_num_heads": attention.kv_heads}
        settings |= {"scale": attention.score_scale, "do_rotary": 0, "local_window_size": ring.window or -1}
        if self.format.scaling is KvScaling.STATIC:
            settings |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}
            settings |= {"kv_cache_bit_width": self.format.bits}
            scales = [self._scales(f"{name}.{side}", getattr(constants, side)) for side in ("key", "value")]
            inputs += [*[None] * (FIRST_SCALE_INPUT - len(inputs)), *scales]
        mixed, *present = graph.nodes(
            "GroupQueryAttention", *inputs, domain=MICROSOFT, name=f"{name}.attention", count=3, **settings
        )
        for part, updated in zip(parts, present, strict=True):
            graph.output(updated, f"{PRESENT}.{part}", data_type, shape)
        if self.format.bits == 16:
            mixed = graph.node("Cast", mixed, to=ir.DataType.FLOAT)
        return self._shifted(mixed, "Add", f"{name}.mixed_center", constants.value, attention.group)

    def _typed(self, rows: Value) -> Value:
        """Queries, keys and values have the type of a float cache."""
        return self.graph.node("Cast", rows, to=ir.DataType.FLOAT16) if self.format.bits == 16 else rows

    def _scales(self, name: str, constants: ChannelConstants) -> Value:
        """float32 [1, K, 1, Hd]."""
        scales = constants.balance * constants.scale
        return self.graph.constant(f"{name}_scales", scales[None, :, None, :].numpy().astype(np.float32))

    def _shifted(self, rows: Value, operator: str, name: str, constants: ChannelConstants, repeats: int = 1) -> Value:
        center = constants.center.repeat_interleave(repeats, 0).flatten().numpy()
        return self.graph.node(operator, rows, self.graph.constant(name, center)) if center.any() else rows
