"""Recurrent mixers in MIL: convolutions in both layouts, recurrences over sums in rows, where numbers between products are fp32.

A call's tokens may end in padding, which must not reach a state: steps of padding have length zero, so that nothing fades and nothing
is added, and a convolution keeps the last inputs before it.
"""

from __future__ import annotations

import numpy as np

from exporter.decoder.recurrence import CausalConvolution, SelectiveScan, StateSpaceDual, StateSpec
from exporter.targets.coreml.dual import DualForm
from exporter.targets.coreml.graph import FunctionGraph, Value
from exporter.targets.coreml.layout import Layout
from exporter.targets.coreml.positions import Positions
from exporter.targets.coreml.recurrent_state import FINE_SCALE, HeldState
from exporter.targets.coreml.weights import StoredWeights

LARGEST_HALF = 65504.0


class RecurrenceWriter:
    """Writes recurrences into one function of S tokens a call. Values are [1, S, n], or [1, n, 1, S] in a convolution of channels first."""

    def __init__(self, graph: FunctionGraph, stored: StoredWeights, positions: Positions) -> None:
        self.graph, self.stored, self.positions, self.tokens = graph, stored, positions, positions.tokens
        self.layout: Layout = stored.layout

    def convolve(self, layer: int, convolution: CausalConvolution, value: Value) -> Value:
        """A product and a sum per tap."""
        graph, layout, reach = self.graph, self.layout, convolution.taps - 1
        name, axis = f"layers.{layer}.recurrence.convolution", layout.token_axis
        weight, held = self.stored.vector(name)[:, 0], self._held(layer, convolution.state)
        value = graph.cast(value, layout.between)
        past = self._continued(graph.cast(self._read(held.name), layout.between))
        if layout.channels_first:
            past = graph.node("transpose", x=past, perm=[0, 3, 2, 1])
        window = graph.node("concat", f"{name}.window", values=[past, value], axis=axis)
        total = graph.binary("mul", value, graph.constant(f"{name}.tap{reach}", layout.per_channel(weight[:, reach])))
        for tap in range(reach):
            stored = graph.constant(f"{name}.tap{tap}", layout.per_channel(weight[:, tap]))
            product = graph.binary("mul", graph.slice(window, axis, tap, tap + self.tokens), stored)
            total = graph.binary("add", total, product)
        self._write(held.name, self._last_inputs(window, reach))
        if not convolution.bias:
            return total
        bias = f"{name}.bias"
        return graph.binary("add", total, graph.constant(bias, layout.per_channel(self.stored.vector(bias))))

    def _last_inputs(self, window: Value, reach: int) -> Value:
        """What lies before the end of the real tokens, in the state's order. The Neural Engine has no slices that move: there it is a
        product with a one-hot choice."""
        graph, axis, length = self.graph, self.layout.token_axis, self.positions.length
        if length is None:
            last = graph.slice(window, axis, self.tokens, self.tokens + reach)
            return graph.node("transpose", x=last, perm=[0, 3, 2, 1]) if self.layout.channels_first else last
        if not self.layout.channels_first:
            places = graph.binary("add", length, np.arange(reach, dtype=np.int32))
            return graph.node("gather", x=window, indices=places, axis=axis)
        flat = graph.node("reshape", x=window, shape=[1, 1, window.shape[1], window.shape[3]])
        chosen = graph.node("matmul", x=flat, y=self._choice(window.shape[3], reach))
        return graph.node("transpose", x=chosen, perm=[0, 3, 1, 2])

    def _choice(self, places: int, reach: int) -> Value:
        """fp16 [1, 1, reach + S, reach]: 1 where a place of the window becomes one of the last inputs."""
        graph, name = self.graph, f"last_inputs_{reach}"
        if name not in graph.shared:
            wanted = graph.binary("add", self.positions.length, np.arange(reach, dtype=np.int32))
            row = graph.node("expand_dims", x=wanted, axes=[0])
            chosen = graph.node("equal", x=row, y=np.arange(places, dtype=np.int32)[:, None])
            graph.shared[name] = graph.node("reshape", name, x=graph.cast(chosen, "fp16"), shape=[1, 1, places, reach])
        return graph.shared[name]

    def scan(
        self, layer: int, scan: SelectiveScan, value: Value, step: Value, entering: Value, leaving: Value
    ) -> Value:
        """See `Ops.selective_scan`. Decays that differ by state leave no product of matrices to gather a chunk in, and MIL has no scan.
        So neighbours are joined, then neighbours of these, until every token has all before it: a logarithm of S rounds, each over all
        of [S, I, N]. Only products of decays are taken, which are below one, so nothing grows and nothing cancels.
        """
        graph, tokens, prefix = self.graph, self.tokens, f"layers.{layer}.recurrence"
        channels, size = scan.states[1].shape
        lengths = self._lengths(step, None, 0.0)
        decay = graph.constant(f"{prefix}.decay.negative", -np.exp(self.stored.vector(f"{prefix}.decay")))
        faded = graph.node("exp", x=graph.binary("mul", self._shaped(lengths, [tokens, channels, 1]), decay))
        given = self._shaped(graph.binary("mul", lengths, value), [tokens, channels, 1])
        given = graph.binary("mul", given, self._shaped(entering, [tokens, 1, size]))
        held = self._held(layer, scan.states[1])
        past = self._read_sums(held)
        reach = 1
        while reach < tokens:
            decays = graph.slice(faded, 0, reach, tokens)
            added = graph.binary("mul", decays, graph.slice(given, 0, 0, tokens - reach))
            late = graph.binary("add", graph.slice(given, 0, reach, tokens), added)
            given = graph.node("concat", values=[graph.slice(given, 0, 0, reach), late], axis=0)
            product = graph.binary("mul", decays, graph.slice(faded, 0, 0, tokens - reach))
            faded = graph.node("concat", values=[graph.slice(faded, 0, 0, reach), product], axis=0)
            reach *= 2
        states = graph.binary("add", given, graph.binary("mul", faded, past))
        scanned = graph.node("matmul", x=states, y=self._shaped(leaving, [tokens, size, 1]))
        self._write_sums(held, self._shaped(graph.slice(states, 0, tokens - 1, tokens), [channels, size]))
        skip = graph.constant(f"{prefix}.skip", self.stored.vector(f"{prefix}.skip"))
        return graph.binary("add", self._shaped(scanned, [1, tokens, channels]), graph.binary("mul", value, skip))

    def dual(
        self, layer: int, dual: StateSpaceDual, value: Value, step: Value, entering: Value, leaving: Value
    ) -> Value:
        """See `Ops.state_space_dual` and, for the closed form of a chunk, `scan.dual_blocks`."""
        graph, prefix, heads = self.graph, f"layers.{layer}.recurrence", (dual.groups, dual.group_heads)
        rows = self._shaped(value, [self.tokens, *heads, dual.head_dim])
        lengths = self._shaped(self._lengths(step, f"{prefix}.step_bias", dual.shortest_step), [self.tokens, *heads])
        decay = -np.exp(self.stored.vector(f"{prefix}.decay")).reshape(heads)
        logarithms = graph.binary("mul", lengths, graph.constant(f"{prefix}.decay.negative", decay))
        shared = [
            graph.node("transpose", x=self._shaped(part, [self.tokens, dual.groups, dual.state_size]), perm=[1, 0, 2])
            for part in (entering, leaving)
        ]
        held = self._held(layer, dual.states[1])
        form = DualForm(graph, dual, rows, lengths, logarithms, *shared)
        scanned, state = (form.of_token if self.tokens == 1 else form.of_chunk)(self._read_sums(held))
        self._write_sums(held, state)
        skip = self.stored.vector(f"{prefix}.skip").reshape(*heads, 1)
        skipped = graph.binary("mul", rows, graph.constant(f"{prefix}.skip", skip))
        return self._shaped(graph.binary("add", scanned, skipped), [1, self.tokens, dual.channels])

    def _lengths(self, step: Value, bias: str | None, shortest: float) -> Value:
        """Steps [1, S, n], zero where a token is padding."""
        graph = self.graph
        if bias is not None:
            step = graph.binary("add", step, graph.constant(bias, self.stored.vector(bias)))
        lengths = graph.node("softplus", x=step)
        if shortest:
            lengths = graph.binary("maximum", lengths, shortest)
        return lengths if self.positions.length is None else graph.binary("mul", lengths, self.positions.real())

    def _held(self, layer: int, state: StateSpec) -> HeldState:
        return HeldState.of(layer, state, self.layout.channels_first)

    def _continued(self, past: Value) -> Value:
        """Zeros where a conversation begins: not every host can have a new state for it."""
        return self.graph.binary("mul", past, self.positions.continues())

    def _read(self, name: str) -> Value:
        return self.graph.node("read_state", f"{name}_past", input=self.graph.input(name))

    def _write(self, name: str, value: Value) -> Value:
        """What the state then holds."""
        half = self.graph.cast(value, "fp16")
        return self.graph.node("coreml_update_state", f"{name}_held", state=self.graph.input(name), value=half)

    def _read_sums(self, held: HeldState) -> Value:
        """fp32, from two states."""
        assert held.fine is not None
        graph = self.graph
        coarse, fine = (graph.cast(self._read(name), "fp32") for name in held.names)
        return self._continued(graph.binary("add", coarse, graph.binary("mul", fine, 1 / FINE_SCALE)))

    def _write_sums(self, held: HeldState, value: Value) -> None:
        """What the first state leaves over is taken from what it holds, not from a cast: a compiler may drop a cast to fp16 and back.
        A sum beyond the range of fp16 stays at its end: an infinite one would never leave the state again."""
        assert held.fine is not None
        graph = self.graph
        value = graph.node("clip", x=value, alpha=np.float32(-LARGEST_HALF), beta=np.float32(LARGEST_HALF))
        coarse = graph.cast(self._write(held.name, value), "fp32")
        self._write(held.fine, graph.binary("mul", graph.binary("sub", value, coarse), FINE_SCALE))

    def _shaped(self, value: Value, shape: list[int]) -> Value:
        return self.graph.node("reshape", x=value, shape=shape)
