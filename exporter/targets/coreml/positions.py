"""What follows from the position of a call's first token, computed once per function: masks, slots, rotary angles.

All positions are int32. A function takes S tokens at the positions p .. p + S - 1. Tokens that pad the end of a prompt do no harm: their
slots held positions that no later token may see (a ring has at least window + S - 1 slots), and what is written there is masked until
it is overwritten.

Beside recurrent layers a chunk must not be sent twice, since their states have moved on. There it starts anywhere, and is told how many of
its tokens are real.
"""

from __future__ import annotations

import numpy as np
import torch

from exporter.decoder.cache import LayerCache
from exporter.decoder.rotary import cosine_sine
from exporter.decoder.spec import AttentionSpec, RotarySpec
from exporter.targets.coreml.graph import KINDS, FunctionGraph, Value
from exporter.targets.coreml.layout import Layout

HIDDEN = 1e4
"""Taken off the score of a slot that a token may not see: its probability becomes exactly zero."""


class Positions:
    """Positions of one function's tokens, and what depends on them."""

    def __init__(
        self,
        graph: FunctionGraph,
        layout: Layout,
        first: Value,
        tokens: int,
        table_rows: int,
        length: Value | None = None,
    ) -> None:
        """`length` int32 [1]: how many tokens are real, where a call is told."""
        self.graph, self.layout, self.first, self.tokens, self.table_rows = graph, layout, first, tokens, table_rows
        self.length = length
        self.all = self.graph.binary("add", first, np.arange(tokens, dtype=np.int32)) if tokens > 1 else first
        self._masks: dict[tuple[LayerCache, int], Value] = {}
        self._sloped: dict[tuple[LayerCache, tuple[float, ...]], Value] = {}
        self._held: dict[LayerCache, tuple[Value, Value | None]] = {}
        self._choices: dict[LayerCache, tuple[Value, Value]] = {}
        self._slots: dict[LayerCache, Value] = {}
        self._angles: dict[RotarySpec, tuple[Value, Value]] = {}

    def real(self) -> Value:
        """[1, S, 1]: 1 where a token is real, 0 where it is padding."""
        graph, name = self.graph, "real_tokens"
        if name not in graph.shared:
            places = np.arange(self.tokens, dtype=np.int32).reshape(1, -1, 1)
            real = graph.node("less", x=places, y=self.length)
            graph.shared[name] = graph.cast(real, self.layout.between)
        return graph.shared[name]

    def continues(self) -> Value:
        """[1]: 0 where a conversation begins, else 1."""
        graph, name = self.graph, "continues"
        if name not in graph.shared:
            later = graph.node("greater", x=self.first, y=np.int32(0))
            graph.shared[name] = graph.cast(later, self.layout.between)
        return graph.shared[name]

    def first_slot(self, ring: LayerCache) -> Value:
        """int32 [1]: slot of the first token, in a cache without sinks. The others follow it."""
        if ring not in self._slots:
            wraps = ring.window is not None
            self._slots[ring] = self.graph.binary("mod", self.first, ring.slots) if wraps else self.first
        return self._slots[ring]

    def mask(self, ring: LayerCache, attention: AttentionSpec) -> Value:
        """What is added to the scores of a layer, fp16 [1, 1, G * S, C], or [1, K, G * S, C] where heads differ by what distance takes."""
        if attention.distance_slopes is None:
            return self._mask(ring, attention.group)
        key = ring, attention.distance_slopes
        if key not in self._sloped:
            self._sloped[key] = self._sloped_mask(ring, attention, attention.distance_slopes)
        return self._sloped[key]

    def _sloped_mask(self, ring: LayerCache, attention: AttentionSpec, slopes: tuple[float, ...]) -> Value:
        """A slot that holds nothing may be said to hold a position after the token's: no distance comes of it."""
        graph = self.graph
        behind = graph.binary("minimum", graph.binary("sub", self._held_positions(ring)[0], self._column()), 0)
        shape = [1, 1, self.tokens, ring.slots]
        distance = graph.node("reshape", x=graph.cast(behind, self.layout.between), shape=shape)
        stored = graph.constant(
            f"slopes_{len(self._sloped)}", np.array(slopes, KINDS[self.layout.between]).reshape(1, -1, 1, 1)
        )
        sloped = graph.cast(graph.binary("mul", distance, stored), "fp16")
        seen = graph.binary("add", sloped, self._mask(ring, 1))
        folded = [1, attention.kv_heads, attention.group * self.tokens, ring.slots]
        return graph.node("reshape", f"sloped_mask_{ring.name}_{len(self._sloped)}", x=seen, shape=folded)

    def _mask(self, ring: LayerCache, copies: int) -> Value:
        """fp16 [1, 1, copies * S, C]: 0 where a token may read a slot, else -HIDDEN; the S rows repeated. One row needs no copies."""
        graph, key = self.graph, (ring, 1 if self.tokens == 1 else copies)
        if key not in self._masks and key[1] > 1:
            self._masks[key] = graph.node(
                "tile", f"mask_{ring.name}_tiled", x=self._mask(ring, 1), reps=[1, 1, copies, 1]
            )
        if key not in self._masks:
            seen = graph.binary("sub", graph.cast(self._visible(ring), "fp16"), 1.0)
            additive = graph.binary("mul", seen, HIDDEN)
            shape = [1, 1, self.tokens, ring.slots]
            self._masks[key] = graph.node("reshape", f"mask_{ring.name}", x=additive, shape=shape)
        return self._masks[key]

    def choices(self, ring: LayerCache) -> tuple[Value, Value]:
        """fp16 [1, 1, S, C]: 1 where a token goes to a slot, else 0; and [1, 1, 1, C]: 0 where any token goes, else 1."""
        if ring not in self._choices:
            graph = self.graph
            held, valid = self._held_positions(ring)
            chosen = graph.node("equal", x=self._column(), y=held)
            if valid is not None:
                chosen = graph.node("logical_and", x=chosen, y=valid)
            shape = [1, 1, self.tokens, ring.slots]
            one_hot = graph.node("reshape", f"choice_{ring.name}", x=graph.cast(chosen, "fp16"), shape=shape)
            written = graph.node("reduce_sum", x=one_hot, axes=[2], keep_dims=True) if self.tokens > 1 else one_hot
            self._choices[ring] = one_hot, graph.node("sub", f"kept_{ring.name}", x=np.float16(1), y=written)
        return self._choices[ring]

    def angles(self, rotary: RotarySpec) -> tuple[Value, Value]:
        """Cosine and sine for rotation of heads, [1, S, 1, dimensions / 2] or [1, 1, dimensions / 2, S]."""
        if rotary not in self._angles:
            graph, half = self.graph, rotary.dimensions // 2
            tables = torch.cat(cosine_sine(rotary, torch.arange(self.table_rows)), dim=-1)
            rows = self.gathered(f"rotary_{len(self._angles)}", tables.numpy())
            shape = [1, self.tokens, 1, 2 * half]
            if self.layout.channels_first:
                rows, shape = graph.node("transpose", x=rows, perm=[1, 0]), [1, 1, 2 * half, self.tokens]
            both = graph.node("reshape", x=rows, shape=shape)
            axis = self.layout.head_channel_axis
            self._angles[rotary] = graph.slice(both, axis, 0, half), graph.slice(both, axis, half, 2 * half)
        return self._angles[rotary]

    def gathered(self, name: str, table: np.ndarray) -> Value:
        """Rows [S, n] of a float32 table, by position. Where only fp16 is at hand, the table is stored as a sum of two: in fp16
        arithmetic the sum is the rounded number, in exact arithmetic it is the number itself."""
        graph = self.graph
        if self.layout.between == "fp32":
            return graph.node("gather", x=graph.constant(name, table), indices=self.all, axis=0)
        coarse = table.astype(np.float16)
        parts = {"coarse": coarse, "fine": (table - coarse.astype(np.float32)).astype(np.float16)}
        rows = [
            graph.node("gather", x=graph.constant(f"{name}.{part}", numbers), indices=self.all, axis=0)
            for part, numbers in parts.items()
        ]
        return graph.binary("add", *rows)

    def _column(self) -> Value:
        """Positions as int32 [S, 1]."""
        return self.graph.node("expand_dims", x=self.all, axes=[1])

    def _last(self) -> Value:
        """int32 [1]: position of the last token; of the last real one, where that is known."""
        if self.length is None:
            return self.graph.binary("add", self.first, self.tokens - 1)
        return self.graph.binary("sub", self.graph.binary("add", self.first, self.length), 1)

    def _held_positions(self, ring: LayerCache) -> tuple[Value, Value | None]:
        """int32 [1, C]: the position that each slot holds once this call's tokens are written, and bool [1, C]: whether it holds one
        (None when every comparison with a token's position says so). The rule is that of `LayerCache.held_positions`."""
        if ring in self._held:
            return self._held[ring]
        graph, slots = self.graph, np.arange(ring.slots, dtype=np.int32)[None]
        if ring.window is None:
            self._held[ring] = graph.constant(f"slots_{ring.name}", slots), None
            return self._held[ring]
        last = graph.node("expand_dims", x=self._last(), axes=[1])
        rounds = (
            -(-ring.slots // ring.ring) * ring.ring
        )  # keeps the dividend positive: runtimes differ about the sign of a remainder
        behind = graph.binary("mod", graph.binary("sub", graph.binary("add", last, rounds), slots), ring.ring)
        held = graph.binary("sub", last, behind)
        if ring.sinks:
            sink = slots < ring.sinks
            held = graph.binary("mul", held, (~sink).astype(np.int32))
            held = graph.binary("add", held, np.where(sink, slots, 0).astype(np.int32))
            first = np.where(sink, 0, ring.sinks).astype(np.int32)
            self._held[ring] = held, graph.node("greater_equal", x=held, y=first)
        else:
            self._held[ring] = held, graph.node("greater_equal", x=held, y=np.int32(0))
        return self._held[ring]

    def _visible(self, ring: LayerCache) -> Value:
        """bool [S, C]."""
        graph, column = self.graph, self._column()
        held, valid = self._held_positions(ring)
        seen = graph.node("less_equal", x=held, y=column)
        if valid is None:
            return seen
        near = graph.node("less", x=graph.binary("sub", column, held), y=np.int32(ring.window or 0))
        if ring.sinks:
            near = graph.node("logical_or", x=near, y=np.arange(ring.slots)[None] < ring.sinks)
        return graph.node("logical_and", x=graph.node("logical_and", x=seen, y=near), y=valid)
