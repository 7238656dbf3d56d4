"""Runs an ONNX artifact: every cache is one buffer, bound as input and as output, so that a step writes only the new slots. A state of
a recurrent layer is two buffers, which change places after every call.

The host's whole part is here: which slot a token goes to, which position each slot holds, and when a chunk must be cut. An app in
another language does the same with the names and shapes in `host.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]

from exporter.targets.onnx.host import HostLayout
from exporter.targets.onnx.names import (
    GRAPH_FILE,
    HELD,
    HOST_FILE,
    LOGIT_ROWS,
    NEXT_STATE,
    PAST,
    POSITIONS,
    PRESENT,
    STATE,
    TOKENS,
    WRITE_SLOT,
)

FIRST_SLOTS = 256
"""Slots that a growing cache starts with, and the multiple that it keeps."""

EMPTY = np.iinfo(np.int64).max
"""What `held` says of a slot that holds nothing: a position that no token can see."""


class Caches:
    """The buffers of one conversation. Rings have all their slots at once; the cache of a full-attention layer grows by doubling, so
    that a short conversation neither holds nor reads the slots of a long one."""

    def __init__(self, session: onnxruntime.InferenceSession, layout: HostLayout) -> None:
        self.layout, self.length = layout, 0
        self.capacity = {
            name: ring.slots if ring.window else min(FIRST_SLOTS, ring.slots) for name, ring in layout.rings.items()
        }
        self.held = {name: np.full(count, EMPTY) for name, count in self.capacity.items()}
        self.write_slot = {name: np.zeros(1, np.int64) for name in layout.rings}
        self._parts = [item for item in session.get_inputs() if item.name.startswith(f"{PAST}.")]
        self.tensors = {item.name.removeprefix(f"{PAST}."): self._zeros(item) for item in self._parts}
        states = [item for item in session.get_inputs() if item.name.startswith(f"{STATE}.")]
        self.states = tuple(
            {item.name.removeprefix(f"{STATE}."): self._zeros(item) for item in states} for _ in range(2)
        )
        self.turn = 0

    def reserve(self, length: int) -> bool:
        """Makes room for so many tokens; returns whether buffers were replaced."""
        small = [name for name, ring in self.layout.rings.items() if self.capacity[name] < min(length, ring.slots)]
        for name in small:
            wanted = max(length, 2 * self.capacity[name])
            self.capacity[name] = min(-(-wanted // FIRST_SLOTS) * FIRST_SLOTS, self.layout.rings[name].slots)
            grown = np.full(self.capacity[name], EMPTY)
            grown[: len(self.held[name])] = self.held[name]
            self.held[name] = grown
        for item in self._parts if small else ():
            self._grow(item)
        return bool(small)

    def place(self, count: int) -> np.ndarray:
        """Reserves slots for the next `count` tokens; returns their positions int64 [count]."""
        positions = np.arange(self.length, self.length + count)
        for name, ring in self.layout.rings.items():
            slots = ring.slot_of(positions)
            self.write_slot[name][0] = slots[0]
            self.held[name][slots] = positions
        self.length += count
        return positions

    def longest_chunk(self, wanted: int) -> int:
        """A write runs on from its first slot and wraps at the end of the buffer. In a ring behind sinks it would wrap onto the
        sinks, so there a chunk ends where the ring does."""
        for ring in self.layout.rings.values():
            if ring.sinks:
                slot = int(ring.slot_of(np.array([self.length]))[0])
                wanted = min(wanted, ring.slots - slot)
        return wanted

    def clear(self) -> None:
        self.length = 0
        for held in self.held.values():
            held.fill(EMPTY)
        for state in self.states[self.turn].values():
            state.numpy().fill(0)

    def swap(self) -> None:
        """What a call wrote is what the next one reads."""
        self.turn = 1 - self.turn

    def _zeros(self, item: Any) -> Any:
        zeros = np.zeros([self._size(size) for size in item.shape], NUMPY_TYPES[item.type])
        return onnxruntime.OrtValue.ortvalue_from_numpy(zeros)

    def _size(self, size: int | str) -> int:
        return self.capacity[size.removeprefix("slots.")] if isinstance(size, str) else size

    def _grow(self, item: Any) -> None:
        name = item.name.removeprefix(f"{PAST}.")
        old, new = self.tensors[name].numpy(), self._zeros(item)
        new.numpy()[tuple(slice(size) for size in old.shape)] = old
        self.tensors[name] = new


class OnnxDriver:
    """See `runtime.driver.Driver`. A step of one token allocates nothing but where a cache grows."""

    def __init__(self, session: onnxruntime.InferenceSession, layout: HostLayout) -> None:
        self._session, self._layout = session, layout
        self.context, self.chunk, self.vocab_size = layout.context, layout.chunk, layout.vocab_size
        self.engine, self.threads = f"onnxruntime {onnxruntime.__version__}", layout.threads
        self._caches = Caches(session, layout)
        self._steps: dict[tuple[int, bool], Step] = {}

    def reset(self) -> None:
        self._caches.clear()

    def prefill(self, token_ids: list[int]) -> np.ndarray:
        """float32 [n, V]: logits after each of n tokens."""
        return np.concatenate([logits.copy() for logits in self._chunks(token_ids, every=True)])

    def prompt(self, token_ids: list[int]) -> np.ndarray:
        """float32 [V]: logits after the last token; no other token meets the head."""
        return list(self._chunks(token_ids, every=False))[-1][0]

    def decode(self, token_id: int) -> np.ndarray:
        """float32 [V]; valid until the next call."""
        return self._run([token_id], every=False)[0]

    def kv_bytes(self) -> int:
        self._reserve(self.context)
        return sum(value.numpy().nbytes for value in self._caches.tensors.values())

    def _chunks(self, token_ids: list[int], every: bool) -> Iterator[np.ndarray]:
        done = 0
        while done < len(token_ids):
            count = self._caches.longest_chunk(min(self.chunk, len(token_ids) - done))
            yield self._run(token_ids[done : done + count], every)
            done += count

    def _run(self, token_ids: list[int], every: bool) -> np.ndarray:
        self._reserve(self._caches.length + len(token_ids))
        shape = (len(token_ids), every)
        if shape not in self._steps:
            self._steps[shape] = Step(self._session, self._caches, *shape, self.vocab_size)
        return self._steps[shape].run(token_ids)

    def _reserve(self, length: int) -> None:
        if self._caches.reserve(length):
            self._steps.clear()


class Step:
    """A call for a fixed number of tokens: all its buffers are bound once, for either way in which the states can lie."""

    def __init__(
        self, session: onnxruntime.InferenceSession, caches: Caches, count: int, every: bool, vocab_size: int
    ) -> None:
        self._session, self._caches = session, caches
        rows = np.arange(count) if every else np.array([count - 1])
        self._tokens, self._positions = np.zeros((1, count), np.int64), np.zeros((1, count), np.int64)
        self._logits = np.zeros((1, len(rows), vocab_size), np.float32)
        named = {TOKENS: self._tokens, POSITIONS: self._positions, LOGIT_ROWS: rows}
        named |= {f"{HELD}.{name}": held for name, held in caches.held.items()}
        named |= {f"{WRITE_SLOT}.{name}": slot for name, slot in caches.write_slot.items()}
        declared = {item.name for item in session.get_inputs()}
        named = {name: array for name, array in named.items() if name in declared}
        self._inputs = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in named.items()}
        self._output = onnxruntime.OrtValue.ortvalue_from_numpy(self._logits)
        self._bindings = [self._bound(*caches.states)]
        if caches.states[0]:
            self._bindings.append(self._bound(*reversed(caches.states)))

    def _bound(self, states: dict[str, Any], next_states: dict[str, Any]) -> Any:
        binding = self._session.io_binding()
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self._caches.tensors.items():
            binding.bind_ortvalue_input(f"{PAST}.{name}", value)
            binding.bind_ortvalue_output(f"{PRESENT}.{name}", value)
        for name in states:
            binding.bind_ortvalue_input(f"{STATE}.{name}", states[name])
            binding.bind_ortvalue_output(f"{NEXT_STATE}.{name}", next_states[name])
        binding.bind_ortvalue_output("logits", self._output)
        return binding

    def run(self, token_ids: list[int]) -> np.ndarray:
        self._tokens[0] = token_ids
        self._positions[0] = self._caches.place(len(token_ids))
        self._session.run_with_iobinding(self._bindings[self._caches.turn])
        if self._caches.states[0]:
            self._caches.swap()
        return self._logits[0]


NUMPY_TYPES = {
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
}


def open_driver(folder: Path) -> OnnxDriver:
    """Opens an export with ONNX Runtime's CPU provider."""
    return _open(folder, onnxruntime.SessionOptions())[0]


def open_traced(folder: Path, prefix: Path) -> tuple[OnnxDriver, onnxruntime.InferenceSession]:
    """The same, and the session, which writes a profile named after `prefix` once profiling ends."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(prefix)
    return _open(folder, options)


def _open(folder: Path, options: onnxruntime.SessionOptions) -> tuple[OnnxDriver, onnxruntime.InferenceSession]:
    layout = HostLayout.read(folder / HOST_FILE)
    options.log_severity_level = 3
    options.intra_op_num_threads = layout.threads
    session = onnxruntime.InferenceSession(str(folder / GRAPH_FILE), options, providers=["CPUExecutionProvider"])
    return OnnxDriver(session, layout), session
