"""States of recurrent layers as Core ML states, which hold fp16 and nothing else: which there are, their bytes, and a host's view of them.

The last inputs of a convolution are forgotten after a few tokens, and products round to fp16 anyway: they are stored as they are. What a
recurrence sums up fades slowly, and a step adds little to it: in fp16 alone additions below half a unit in the last place would be lost,
token after token. It is held as two numbers, the nearest fp16 number and 2^11 times what that one leaves over: 22 bits of precision in the
four bytes of a float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exporter.decoder.recurrence import CONVOLUTION, SCAN, StateSpec
from exporter.decoder.spec import DecoderSpec
from exporter.targets.coreml.names import label

FINE_SCALE = 2.0**11
"""Puts what fp16 leaves over into the range of the number itself, away from the numbers that fp16 holds with fewer bits."""

HALF_BYTES = 2


@dataclass(frozen=True)
class HeldState:
    """One state of a layer: `name` in the package, and `fine`, the name of the second half of what is held as two numbers."""

    name: str
    shape: tuple[int, ...]
    fine: str | None

    @staticmethod
    def of(layer: int, state: StateSpec, channels_first: bool) -> HeldState:
        """A convolution's inputs [1, taps - 1, channels] or [1, taps - 1, 1, channels]; sums [I, N] as they are, and those of Mamba 2
        [G, R, N, P] as [G, N, R, P], so that all heads of a group are one product."""
        name = label(f"layers.{layer}.{state.name}")
        if state.name != SCAN:
            reach, channels = state.shape
            return HeldState(name, (1, reach, 1, channels) if channels_first else (1, reach, channels), None)
        return HeldState(name, stored_order(np.empty(state.shape)).shape, f"{name}_fine")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,) if self.fine is None else (self.name, self.fine)


def held_states(spec: DecoderSpec, channels_first: bool) -> list[HeldState]:
    """Of every layer, in order."""
    return [
        HeldState.of(index, state, channels_first) for index, layer in enumerate(spec.layers) for state in layer.states
    ]


def held_shapes(spec: DecoderSpec, channels_first: bool) -> dict[str, tuple[int, ...]]:
    """Every state of a package beside its caches, by name."""
    return {name: held.shape for held in held_states(spec, channels_first) for name in held.names}


def held_bytes(state: StateSpec) -> int:
    return HALF_BYTES * math.prod(state.shape) * (2 if state.name == SCAN else 1)


def is_recurrent(name: str) -> bool:
    """Whether a state, by its name here or its canonical one, belongs to a recurrent layer and not to a cache."""
    return label(name).removesuffix("_fine").endswith((f"_{CONVOLUTION}", f"_{SCAN}"))


def stored_order(sums: np.ndarray) -> np.ndarray:
    """A state's axes as the package has them."""
    return sums.swapaxes(1, 2) if sums.ndim == 4 else sums


def adopt_states(held: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> None:
    """Fills the states of a package, by their names, with float32 arrays by canonical names [of `StateSpec.shape`]."""
    for name, numbers in given.items():
        state, fine = held[label(name)], held.get(f"{label(name)}_fine")
        if fine is None:
            state[...] = numbers.reshape(state.shape)
            continue
        ordered = stored_order(numbers)
        state[...] = ordered.astype(np.float16)
        fine[...] = (ordered - state) * FINE_SCALE
