"""Mamba 2 over one call, in MIL: a token as the definition has it, a chunk as four batched products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.decoder.recurrence import StateSpaceDual
from exporter.targets.coreml.graph import FunctionGraph, Value


@dataclass(frozen=True)
class DualForm:
    """Channels [S, G, R, P]; lengths and logarithms of decays [S, G, R]; B and C [G, S, n]. States are [G, n, R, P]."""

    graph: FunctionGraph
    dual: StateSpaceDual
    rows: Value
    lengths: Value
    logarithms: Value
    entering: Value
    leaving: Value

    def of_token(self, past: Value) -> tuple[Value, Value]:
        """What the heads say [1, G, R, P], and the state afterwards."""
        graph, (groups, heads, size, width) = self.graph, self.dual.states[1].shape
        faded = self._shaped(graph.node("exp", x=self.logarithms), groups, 1, heads, 1)
        given = graph.binary("mul", self.rows, self._column(self.lengths))
        added = graph.binary(
            "mul", self._shaped(given, groups, 1, heads, width), self._shaped(self.entering, groups, size, 1, 1)
        )
        state = graph.binary("add", graph.binary("mul", past, faded), added)
        said = graph.node("matmul", x=self.leaving, y=self._shaped(state, groups, size, heads * width))
        return self._shaped(said, 1, groups, heads, width), state

    def of_chunk(self, past: Value) -> tuple[Value, Value]:
        """The same for S tokens, [S, G, R, P]."""
        graph, (groups, heads, size, width) = self.graph, self.dual.states[1].shape
        tokens = self.rows.shape[0]
        between, faded = self._between(), graph.node("cumsum", x=self.logarithms, axis=0)
        inside = graph.node("matmul", x=self._weights(between), y=self._turned(self.rows, 1, 2, 0, 3))
        before = graph.node("matmul", x=self.leaving, y=self._shaped(past, groups, size, heads * width))
        before = self._shaped(self._turned(before, 1, 0, 2), tokens, groups, heads, width)
        carried = graph.binary("mul", before, self._column(graph.node("exp", x=faded)))
        scanned = graph.binary("add", self._turned(inside, 2, 0, 1, 3), carried)
        whole = self._shaped(graph.node("exp", x=graph.slice(faded, 0, tokens - 1, tokens)), groups, 1, heads, 1)
        state = graph.binary("add", graph.binary("mul", past, whole), self._added(between))
        return scanned, state

    def _between(self) -> Value:
        """Summed logarithms of the decays of tokens s + 1 to t, for t >= s, else 0: [G, R, S, S]."""
        graph, tokens = self.graph, self.rows.shape[0]
        later = graph.constant(f"later_{tokens}", np.tril(np.ones((tokens, tokens), np.float32), -1))
        kept = graph.binary("mul", self._column(self._turned(self.logarithms, 1, 2, 0)), later)
        return graph.node("cumsum", x=kept, axis=2)

    def _weights(self, between: Value) -> Value:
        """What token s gives to token t: [G, R, S, S]."""
        graph, tokens = self.graph, self.rows.shape[0]
        causal = graph.constant(f"causal_{tokens}", np.tril(np.ones((tokens, tokens), np.float32)))
        products = graph.node("matmul", x=self.leaving, y=self.entering, transpose_y=True)
        seen = graph.node("expand_dims", x=graph.binary("mul", products, causal), axes=[1])
        lengths = graph.node("expand_dims", x=self._turned(self.lengths, 1, 2, 0), axes=[2])
        return graph.binary("mul", graph.binary("mul", graph.node("exp", x=between), lengths), seen)

    def _added(self, between: Value) -> Value:
        """What the chunk's tokens leave in the state: [G, n, R, P]."""
        graph, (groups, heads, size, width) = self.graph, self.dual.states[1].shape
        tokens = self.rows.shape[0]
        since = self._shaped(graph.slice(between, 2, tokens - 1, tokens), groups, heads, tokens)
        remaining = graph.binary("mul", graph.node("exp", x=self._turned(since, 2, 0, 1)), self.lengths)
        given = graph.binary("mul", self.rows, self._column(remaining))
        given = self._turned(self._shaped(given, tokens, groups, heads * width), 1, 0, 2)
        added = graph.node("matmul", x=self.entering, y=given, transpose_x=True)
        return self._shaped(added, groups, size, heads, width)

    def _column(self, value: Value) -> Value:
        return self.graph.node("expand_dims", x=value, axes=[3])

    def _shaped(self, value: Value, *shape: int) -> Value:
        return self.graph.node("reshape", x=value, shape=list(shape))

    def _turned(self, value: Value, *perm: int) -> Value:
        return self.graph.node("transpose", x=value, perm=list(perm))
