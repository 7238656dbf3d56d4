"""The cache as Core ML states, which hold fp16 and nothing else.

An fp16 cache is stored as it is. INT4 codes lie three to an fp16 number, as `kv_codec.pack_lanes` puts them there, beside one scale (and
zero point) per vector. MIL has no bitwise operators; multiplications by powers of two, floors and sums of integers up to 2048 are exact
in fp16, so packing and unpacking lose nothing.

Rows: codes [1, K, C, n], scales [1, K, C, 1]. Channels first: codes [1, K * n, 1, C], scales [1, K, 1, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exporter.decoder.cache import LayerCache
from exporter.decoder.spec import AttentionSpec, DecoderSpec
from exporter.quantize.formats import CODES_PER_LANE, KvFormat, KvScaling
from exporter.quantize.kv_codec import ChannelConstants, LayerKvConstants
from exporter.targets.coreml.graph import FunctionGraph, Value
from exporter.targets.coreml.layout import Layout
from exporter.targets.coreml.positions import Positions

SIDES = ("keys", "values")


@dataclass(frozen=True)
class StatePart:
    """One state: `width` numbers per cached vector of each of `heads` heads."""

    name: str
    heads: int
    slots: int
    width: int

    def shape(self, layout: Layout) -> tuple[int, ...]:
        if layout.channels_first:
            return 1, self.heads * self.width, 1, self.slots
        return 1, self.heads, self.slots, self.width


def state_parts(
    layer: int, side: str, attention: AttentionSpec, ring: LayerCache, kv_format: KvFormat
) -> list[StatePart]:
    """The states of one side of a layer's cache, in the order codes, scale, zero."""
    width = attention.head_dim
    prefix, heads = f"layers_{layer}_{side}", attention.kv_heads
    if kv_format.scaling is KvScaling.NONE:
        return [StatePart(prefix, heads, ring.slots, width)]
    names = ("scale", "zero") if kv_format.zero_point else ("scale",)
    lanes = StatePart(prefix, heads, ring.slots, -(-width // CODES_PER_LANE))
    return [lanes, *(StatePart(f"{prefix}_{name}", heads, ring.slots, 1) for name in names)]


def state_shapes(
    spec: DecoderSpec, layers: Sequence[LayerCache], kv_format: KvFormat, layout: Layout
) -> dict[str, tuple[int, ...]]:
    """Every state of the caches of a package, by name."""
    return {
        part.name: part.shape(layout)
        for index, layer in enumerate(spec.layers)
        if layer.attention is not None
        for side in SIDES
        for part in state_parts(index, side, layer.attention, layers[index], kv_format)
    }


class SlotWriter:
    """Puts new vectors into a state. In rows a chunk is one slice, which Core ML updates in place; chunks start at multiples of their
    length and rings are multiples of it, so none wraps. Behind sinks rings do wrap anywhere, chunks start anywhere beside recurrent
    layers, and the Neural Engine has no slices that move: there every slot is blended from what it held and what a one-hot choice of
    the new vectors gives it."""

    def __init__(self, graph: FunctionGraph, layout: Layout, positions: Positions) -> None:
        self.graph, self.layout, self.positions = graph, layout, positions

    def write(self, part: StatePart, new: Value, ring: LayerCache) -> Value:
        """fp16 [1, K, S, n] (or [1, K, n, S]) -> the whole state afterwards, [1, K, C, n] (or [1, K, n, C]).

        The state is read before and after the write, and never again: a second read before it would be a chance to get the old one.
        """
        graph, layout = self.graph, self.layout
        state = graph.input(part.name)
        past = graph.node("read_state", f"{part.name}_past", input=state)
        if layout.channels_first:
            updated = self._blended_channels(part, past, new, ring)
        elif ring.sinks or self.positions.length is not None:
            updated = self._blended_rows(past, new, ring)
        else:
            updated = self._sliced(part, past, new, ring)
        held = graph.node("coreml_update_state", f"{part.name}_held", state=state, value=updated)
        if not layout.channels_first:
            return held
        return graph.node("reshape", x=held, shape=[1, part.heads, part.width, part.slots])

    def _sliced(self, part: StatePart, past: Value, new: Value, ring: LayerCache) -> Value:
        graph, start = self.graph, self.positions.first_slot(ring)
        stop = graph.binary("add", start, self.positions.tokens)
        begin = graph.node("concat", values=[np.zeros(2, np.int32), start, np.zeros(1, np.int32)], axis=0)
        sizes = np.array([1, part.heads], np.int32), np.array([part.width], np.int32)
        end = graph.node("concat", values=[sizes[0], stop, sizes[1]], axis=0)
        return graph.node("slice_update", x=past, update=new, begin=begin, end=end)

    def _blended_rows(self, past: Value, new: Value, ring: LayerCache) -> Value:
        graph = self.graph
        choice, kept = self.positions.choices(ring)
        placed = graph.node("matmul", x=choice, y=new, transpose_x=True)
        return graph.binary(
            "add", graph.binary("mul", past, graph.node("transpose", x=kept, perm=[0, 1, 3, 2])), placed
        )

    def _blended_channels(self, part: StatePart, past: Value, new: Value, ring: LayerCache) -> Value:
        graph, tokens = self.graph, self.positions.tokens
        choice, kept = self.positions.choices(ring)
        flat = graph.node("reshape", x=new, shape=[1, part.heads * part.width, 1, tokens])
        if tokens == 1:
            placed = graph.binary("mul", flat, choice)
        else:
            rows = graph.node("reshape", x=new, shape=[1, 1, part.heads * part.width, tokens])
            placed = graph.node("matmul", x=rows, y=choice)
            placed = graph.node("reshape", x=placed, shape=[1, part.heads * part.width, 1, part.slots])
        return graph.binary("add", graph.binary("mul", past, kept), placed)


@dataclass(frozen=True)
class CacheCodec:
    """The codec of one layer's cache."""

    format: KvFormat
    constants: LayerKvConstants

    def side(self, name: str) -> ChannelConstants:
        return self.constants.key if name == "keys" else self.constants.value


class SideCodec:
    """Encodes new vectors of one side and decodes its state. Channels lie on the axis that the layout says."""

    def __init__(self, graph: FunctionGraph, layout: Layout, kv_format: KvFormat, width: int) -> None:
        self.graph, self.layout, self.format, self.width = graph, layout, kv_format, width
        self.axis = layout.cached_channel_axis

    def encode(self, rows: Value) -> list[Value]:
        """Prepared vectors in the layout's own type -> fp16 numbers of every state part."""
        graph = self.graph
        if self.format.scaling is KvScaling.NONE:
            return [graph.cast(rows, "fp16")]
        if self.format.zero_point:
            lowest, highest = self._extreme("reduce_min", rows), self._extreme("reduce_max", rows)
            zero = graph.cast(lowest, "fp16")
            scale = graph.cast(graph.binary("real_div", graph.binary("sub", highest, lowest), 15.0), "fp16")
            shifted = graph.binary("sub", rows, graph.cast(zero, self.layout.between))
            codes = graph.binary("sub", self._rounded(shifted, scale, 0, 15), 8.0)
            return [self._packed(codes), scale, zero]
        scale = graph.cast(graph.binary("mul", self._signed_peak(rows), -1 / 8), "fp16")
        return [self._packed(self._rounded(rows, scale, -8, 7)), scale]

    def decode(self, parts: Sequence[Value]) -> Value:
        """State parts -> fp16 vectors, still prepared."""
        if self.format.scaling is KvScaling.NONE:
            return parts[0]
        graph, codes = self.graph, self._unpacked(parts[0])
        if self.format.zero_point:
            codes = graph.binary("add", codes, 8.0)
        decoded = graph.binary("mul", codes, parts[1])
        return graph.binary("add", decoded, parts[2]) if self.format.zero_point else decoded

    def _extreme(self, operator: str, rows: Value) -> Value:
        return self.graph.node(operator, x=rows, axes=[self.axis], keep_dims=True)

    def _signed_peak(self, rows: Value) -> Value:
        """The element of largest magnitude, with its sign, gets the code -8."""
        graph = self.graph
        highest, lowest = self._extreme("reduce_max", rows), self._extreme("reduce_min", rows)
        upward = graph.node("greater_equal", x=highest, y=graph.binary("mul", lowest, -1.0))
        return graph.node("select", cond=upward, a=highest, b=lowest)

    def _rounded(self, rows: Value, scale: Value, low: int, high: int) -> Value:
        """Codes as the cache's own scale gives them. A scale that fp16 rounds to zero belongs to a vector of zeros, and divides by 1."""
        graph, kind = self.graph, self.layout.between
        dead = graph.cast(graph.node("equal", x=scale, y=np.float16(0)), "fp16")
        divisor = graph.cast(graph.binary("add", scale, dead), kind)
        nearest = graph.node("round", x=graph.binary("real_div", rows, divisor))
        bounds = np.float16 if kind == "fp16" else np.float32
        return graph.node("clip", x=nearest, alpha=bounds(low), beta=bounds(high))

    def _packed(self, codes: Value) -> Value:
        """Codes -8..7 -> fp16 lanes; see `kv_codec.pack_lanes`."""
        graph, lanes = self.graph, -(-self.width // CODES_PER_LANE)
        whole = graph.padded(codes, self.axis, CODES_PER_LANE * lanes)
        first, second, third = (graph.slice(whole, self.axis, part * lanes, (part + 1) * lanes) for part in range(3))
        low = graph.binary(
            "add", graph.binary("mul", graph.binary("add", second, 8.0), 16.0), graph.binary("add", third, 8.0)
        )
        return graph.cast(graph.binary("add", graph.binary("mul", first, 256.0), low), "fp16")

    def _unpacked(self, lanes: Value) -> Value:
        """fp16 lanes -> codes -8..7."""
        graph = self.graph
        first = graph.node("floor", x=graph.binary("mul", lanes, 1 / 256))
        rest = graph.binary("sub", lanes, graph.binary("mul", first, 256.0))
        high = graph.node("floor", x=graph.binary("mul", rest, 1 / 16))
        third = graph.binary("sub", graph.binary("sub", rest, graph.binary("mul", high, 16.0)), 8.0)
        codes = graph.node("concat", values=[first, graph.binary("sub", high, 8.0), third], axis=self.axis)
        return graph.slice(codes, self.axis, 0, self.width)
