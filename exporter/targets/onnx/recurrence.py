"""Recurrent mixers as ONNX operators. A state is an input and an output of the graph, float32 with a leading axis of one.

A step must not write a state where it reads it: nothing orders the operators that still read the old one. So a host has two buffers per
state and swaps them after every call (see `driver`). A call's tokens are all real, and its chunk ends where they do: nothing is padded,
and no state ever sees a token that is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from exporter.decoder.recurrence import CausalConvolution, SelectiveScan, StateSpaceDual, StateSpec
from exporter.targets.onnx.graph import GraphBuilder, Value
from exporter.targets.onnx.names import NEXT_STATE, STATE

LAST = np.iinfo(np.int64).max
"""End of a slice that goes to the end."""


class RecurrenceWriter:
    """Writes recurrences into one graph. S is the open axis of the chunk; `vector` makes a stored weight a value."""

    def __init__(self, graph: GraphBuilder, vector: Callable[[str], Value], positions: Value) -> None:
        self.graph, self._vector, self._positions = graph, vector, positions
        self._causal: tuple[Value, Value] | None = None

    def convolve(self, layer: int, convolution: CausalConvolution, value: Value, weight: np.ndarray) -> Value:
        """[1, S, channels] and weights [channels, taps] -> [1, S, channels]. A product and a sum per tap beat the operator Conv, which
        works off groups of one channel each."""
        graph, name, reach = self.graph, f"layers.{layer}.recurrence.convolution", convolution.taps - 1
        past = self._past(layer, convolution.state)
        window = graph.node("Concat", past, value, axis=1, name=f"{name}.window")
        self._next(layer, convolution.state, self._sliced(window, -reach, LAST))
        taps = [graph.constant(f"{name}.tap{tap}", weight[:, tap]) for tap in range(convolution.taps)]
        total = graph.node("Mul", value, taps[reach])
        for tap in range(reach):
            product = graph.node("Mul", self._sliced(window, tap, tap - reach), taps[tap])
            total = graph.node("Add", total, product)
        return graph.node("Add", total, self._vector(f"{name}.bias")) if convolution.bias else total

    def scan(
        self,
        layer: int,
        scan: SelectiveScan,
        decay: np.ndarray,
        value: Value,
        step: Value,
        entering: Value,
        leaving: Value,
    ) -> Value:
        """Decays of each channel's states [I, n]; see `Ops.selective_scan`. Token by token in one operator: decays that differ by state
        leave no product of matrices to gather a chunk in."""
        graph, prefix, spec = self.graph, f"layers.{layer}.recurrence", scan.states[1]
        first = graph.integers(0)
        length = graph.node("Softplus", step)
        given = graph.node("Mul", length, value)
        stored = graph.constant(f"{prefix}.decay.negative", decay)
        rows = [graph.node("Squeeze", part, first) for part in (length, given, entering, leaving)]

        def token(states: Sequence[Value], row: Sequence[Value]) -> tuple[list[Value], list[Value]]:
            lengths, given, entering, leaving = row
            column, line = graph.integers(1), graph.integers(0)
            faded = graph.node("Exp", graph.node("Mul", graph.node("Unsqueeze", lengths, column), stored))
            outer = (graph.node("Unsqueeze", given, column), graph.node("Unsqueeze", entering, line))
            state = graph.node("Add", graph.node("Mul", faded, states[0]), graph.node("Mul", *outer))
            return [state], [graph.node("MatMul", state, leaving)]

        before = graph.node("Squeeze", self._past(layer, spec), first)
        (state,), (scanned,) = graph.scan([before], rows, token)
        self._next(layer, spec, graph.node("Unsqueeze", state, first))
        skipped = graph.node("Mul", value, self._vector(f"{prefix}.skip"))
        return graph.node("Add", graph.node("Unsqueeze", scanned, first), skipped)

    def dual(
        self,
        layer: int,
        dual: StateSpaceDual,
        decay: np.ndarray,
        skip: np.ndarray,
        value: Value,
        step: Value,
        entering: Value,
        leaving: Value,
    ) -> Value:
        """Decays and skips of each head [H]; see `Ops.state_space_dual` and, for the closed form, `scan.dual_blocks`."""
        graph, spec = self.graph, dual.states[1]
        rows = self._by_head(value, dual.groups, dual.group_heads, dual.head_dim)  # [1, G, R, S, P]
        lengths, logarithms = self._lengths(layer, dual, decay, step)  # [1, G, R, S] each
        between = self._between(logarithms)
        faded = graph.node("CumSum", logarithms, graph.scalar(3, np.int64))
        entering = self._by_head(entering, dual.groups, 1, dual.state_size)  # [1, G, 1, S, n]
        leaving = self._by_head(leaving, dual.groups, 1, dual.state_size)
        past = self._past(layer, spec)  # [1, G, R, n, P]
        across = graph.node("Transpose", entering, perm=[0, 1, 2, 4, 3])
        weights = self._weights(lengths, between, graph.node("MatMul", leaving, across))
        inside = graph.node("MatMul", weights, rows)
        carried = graph.node("Mul", graph.node("MatMul", leaving, past), self._column(graph.node("Exp", faded)))
        scanned = graph.node("Add", inside, carried)
        stored = graph.constant(f"layers.{layer}.recurrence.skip.heads", skip.reshape(dual.groups, -1, 1, 1))
        skipped = graph.node("Add", scanned, graph.node("Mul", rows, stored))
        self._next(layer, spec, self._dual_state(past, rows, across, lengths, between, faded))
        by_token = graph.node("Transpose", skipped, perm=[0, 3, 1, 2, 4])
        return graph.node("Reshape", by_token, graph.integers(1, -1, dual.channels))

    def _lengths(self, layer: int, dual: StateSpaceDual, decay: np.ndarray, step: Value) -> tuple[Value, Value]:
        """Steps and logarithms of decays: [1, G, R, S] each."""
        graph, prefix = self.graph, f"layers.{layer}.recurrence"
        lengths = graph.node("Softplus", graph.node("Add", step, self._vector(f"{prefix}.step_bias")))
        if dual.shortest_step:
            lengths = graph.node("Max", lengths, graph.scalar(dual.shortest_step))
        by_head = graph.node("Transpose", lengths, perm=[0, 2, 1])
        by_head = graph.node("Reshape", by_head, graph.integers(1, dual.groups, dual.group_heads, -1))
        stored = graph.constant(f"{prefix}.decay.negative", decay.reshape(dual.groups, -1, 1))
        return by_head, graph.node("Mul", by_head, stored)

    def _between(self, logarithms: Value) -> Value:
        """Summed logarithms of the decays of tokens s + 1 to t, for t >= s: [1, G, R, S, S]."""
        graph, (_, later) = self.graph, self._masks()
        kept = graph.node("Where", later, self._column(logarithms), graph.scalar(0))
        return graph.node("CumSum", kept, graph.scalar(3, np.int64))

    def _weights(self, lengths: Value, between: Value, products: Value) -> Value:
        """What token s gives to token t: [1, G, R, S, S]."""
        graph, (causal, _) = self.graph, self._masks()
        seen = graph.node("Where", causal, between, graph.scalar(-np.inf))
        given = graph.node("Mul", graph.node("Exp", seen), self._row(lengths))
        return graph.node("Mul", given, products)

    def _dual_state(
        self, past: Value, rows: Value, across: Value, lengths: Value, between: Value, faded: Value
    ) -> Value:
        graph = self.graph
        since = graph.node("Gather", between, graph.scalar(-1, np.int64), axis=3)
        last = graph.node("Slice", faded, graph.integers(-1), graph.integers(LAST), graph.integers(3))
        remaining = graph.node("Mul", graph.node("Exp", since), lengths)
        added = graph.node("MatMul", across, graph.node("Mul", rows, self._column(remaining)))
        return graph.node("Add", graph.node("Mul", past, self._column(graph.node("Exp", last))), added)

    def _by_head(self, value: Value, groups: int, heads: int, width: int) -> Value:
        """[1, S, groups * heads * width] -> [1, groups, heads, S, width]."""
        split = self.graph.node("Reshape", value, self.graph.integers(1, -1, groups, heads, width))
        return self.graph.node("Transpose", split, perm=[0, 2, 3, 1, 4])

    def _column(self, value: Value) -> Value:
        return self.graph.node("Unsqueeze", value, self.graph.integers(4))

    def _row(self, value: Value) -> Value:
        return self.graph.node("Unsqueeze", value, self.graph.integers(3))

    def _masks(self) -> tuple[Value, Value]:
        """bool [S, S] each: whether the token of a row has seen that of a column, and whether it is a later one."""
        if self._causal is None:
            token = self.graph.node("Reshape", self._positions, self.graph.integers(-1, 1))
            names = {"LessOrEqual": "causal", "Less": "later"}
            first, second = (self.graph.node(kind, self._positions, token, name=name) for kind, name in names.items())
            self._causal = first, second
        return self._causal

    def _sliced(self, window: Value, start: int, end: int) -> Value:
        graph = self.graph
        return graph.node("Slice", window, graph.integers(start), graph.integers(end), graph.integers(1))

    def _past(self, layer: int, state: StateSpec) -> Value:
        return self.graph.input(f"{STATE}.layers.{layer}.{state.name}", ir.DataType.FLOAT, (1, *state.shape))

    def _next(self, layer: int, state: StateSpec, value: Value) -> None:
        name = f"{NEXT_STATE}.layers.{layer}.{state.name}"
        self.graph.output(value, name, ir.DataType.FLOAT, (1, *state.shape))
