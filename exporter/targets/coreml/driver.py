"""Runs a package by the reference interpreter, as an app would by Core ML: one state, chunks that start at multiples of their length.

A conversation that goes on in the middle of a chunk sends that chunk again from its start: its tokens are computed once more, and what
they write is what was there. States of recurrent layers have moved on and must not meet a token twice: there a chunk starts at the first
token that is new, and the package is told where the real tokens end.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exporter.targets.coreml.host import HostLayout
from exporter.targets.coreml.interpreter.machine import Interpreter, Precision
from exporter.targets.coreml.names import DECODE, HOST_FILE, LENGTH, LOGITS, PACKAGE, POSITION, PREFILL, TOKENS, label
from exporter.targets.coreml.recurrent_state import adopt_states, is_recurrent

PADDING = 0
"""Token id behind the end of a prompt; any would do."""


class CoreMlDriver:
    """See `runtime.driver.Driver`."""

    def __init__(self, machine: Interpreter, layout: HostLayout) -> None:
        self._machine = machine
        self.context, self.chunk, self.vocab_size = layout.context, layout.chunk, layout.vocab_size
        self._chunk_function = PREFILL if PREFILL in machine.functions else next(iter(machine.functions))
        self._decodes = DECODE in machine.functions
        self._told_length = LENGTH in machine.functions[self._chunk_function].inputs
        self._state = machine.make_state()
        self._tokens: list[int] = []

    def reset(self) -> None:
        self._state, self._tokens = self._machine.make_state(), []

    def prefill(self, token_ids: list[int]) -> np.ndarray:
        """float32 [n, V]: logits after each of n tokens."""
        known = len(self._tokens)
        start = known if self._told_length else known - known % self.chunk
        self._tokens += token_ids
        logits = [self._chunk(at) for at in range(start, len(self._tokens), self.chunk)]
        return np.concatenate(logits)[known - start :]

    def prompt(self, token_ids: list[int]) -> np.ndarray:
        """float32 [V]: logits after the last token."""
        return self.prefill(token_ids)[-1]

    def decode(self, token_id: int) -> np.ndarray:
        """float32 [V]. Without a function for one token the chunk that it belongs to is sent again, or one that begins with it."""
        if not self._decodes:
            return self.prefill([token_id])[0]
        logits = self._run(DECODE, [token_id], len(self._tokens))[0]
        self._tokens.append(token_id)
        return logits

    def adopt(self, token_ids: list[int], stored: dict[str, np.ndarray]) -> None:
        """Goes on after `token_ids` with a cache that something else filled: arrays [slots, K, n] by canonical names; and with the
        states of recurrent layers, in the shapes of `StateSpec`."""
        self._tokens = list(token_ids)
        recurrent = {name: numbers for name, numbers in stored.items() if is_recurrent(name)}
        adopt_states(self._state, recurrent)
        for name, numbers in stored.items():
            if name in recurrent:
                continue
            state = self._state[label(name)]
            channels_first = state.shape[2] == 1 and state.shape[1] == numbers.shape[1] * numbers.shape[2]
            turned = numbers.transpose(1, 2, 0) if channels_first else numbers.transpose(1, 0, 2)
            state[...] = turned.reshape(state.shape)

    def kv_bytes(self) -> int:
        """Every element of a state is an fp16 number on a device, whatever the interpreter holds it in."""
        return sum(2 * state.size for name, state in self._state.items() if not is_recurrent(name))

    def _chunk(self, start: int) -> np.ndarray:
        tokens = self._tokens[start : start + self.chunk]
        return self._run(self._chunk_function, tokens, start)[: len(tokens)]

    def _run(self, function: str, token_ids: list[int], position: int) -> np.ndarray:
        tokens = 1 if function == DECODE else self.chunk
        padded = token_ids + [PADDING] * (tokens - len(token_ids))
        inputs = {TOKENS: np.array([padded], np.int32), POSITION: np.array([position], np.int32)}
        if LENGTH in self._machine.functions[function].inputs:
            inputs[LENGTH] = np.array([len(token_ids)], np.int32)
        logits = self._machine.run(function, inputs, self._state)[LOGITS]
        return np.asarray(logits[0], np.float32)


def open_driver(folder: Path) -> CoreMlDriver:
    """Opens an export with every result rounded to its type, as on a device."""
    return _open(folder, Precision.FP16)


def open_exact_driver(folder: Path) -> CoreMlDriver:
    """Opens an export with nothing rounded to 16 bits: a difference from the oracle without that rounding is a fault of the graph."""
    return _open(folder, Precision.FP32)


def _open(folder: Path, precision: Precision) -> CoreMlDriver:
    return CoreMlDriver(Interpreter.open(folder / PACKAGE, precision), HostLayout.read(folder / HOST_FILE))
