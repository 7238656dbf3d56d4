"""Recurrent mixers as one node each: this project's operators take a layer's state through the tokens of a call.

A state lies in the program twice, and a number beside each copy says before which position it stands (see `kernels/recurrence.h`). So a
chunk may be given again, alone or longer, from where it began, and position 0 starts from zeros whatever is there.
"""

from __future__ import annotations

import torch
from torch import nn

from exporter.decoder.recurrence import CONVOLUTION, SCAN, CausalConvolution, SelectiveScan, StateSpaceDual
from exporter.decoder.spec import DecoderSpec, LayerSpec
from exporter.decoder.weights import DecoderWeights
from exporter.targets.executorch.constants import Constants
from exporter.targets.executorch.kernels import operators  # noqa: F401  defines the operators
from exporter.targets.executorch.xnnpack.names import HELD, STATE_COPIES

_OPERATORS = torch.ops.slm


class LayerStates(nn.Module):
    """Per state of a layer float32 [2, ...], and int64 [2] of positions."""

    def __init__(self, layer: LayerSpec) -> None:
        super().__init__()
        for state in layer.states:
            self.register_buffer(state.name, torch.zeros(STATE_COPIES, *state.shape))
            self.register_buffer(f"{state.name}{HELD}", torch.zeros(STATE_COPIES, dtype=torch.int64))

    def named(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies and their positions."""
        state, held = (getattr(self, part) for part in (name, f"{name}{HELD}"))
        return state, held


class RecurrentStates(nn.Module):
    """The states of all layers."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LayerStates(layer) for layer in spec.layers)

    def of(self, layer: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.layers[layer]
        assert isinstance(found, LayerStates)
        return found.named(name)


class Recurrences:
    """Recurrences of one call whose first token stands at `start`, int64 [1]; see `decoder.ops.Ops`."""

    def __init__(
        self, constants: Constants, weights: DecoderWeights, states: RecurrentStates, start: torch.Tensor
    ) -> None:
        self.constants, self.weights, self.states, self.start = constants, weights, states, start

    def convolve(self, layer: int, convolution: CausalConvolution, value: torch.Tensor) -> torch.Tensor:
        name = f"layers.{layer}.recurrence.convolution"
        by_tap = self.constants.constant(f"{name}.taps", lambda: self.weights.dense(name)[:, 0].T)
        bias = self.constants.constant(
            f"{name}.bias", lambda: self.weights.dense(f"{name}.bias") if convolution.bias else torch.empty(0)
        )
        return _OPERATORS.causal_convolution(value, self.start, *self.states.of(layer, CONVOLUTION), by_tap, bias)

    def scan(self, layer: int, scan: SelectiveScan, *rows: torch.Tensor) -> torch.Tensor:
        """`rows` are value, step, entering and leaving."""
        given = (*rows, self.start, *self.states.of(layer, SCAN))
        return _OPERATORS.selective_scan(*given, self._decay(layer), self._vector(layer, "skip"))

    def dual(self, layer: int, dual: StateSpaceDual, *rows: torch.Tensor) -> torch.Tensor:
        """The same rows."""
        given = (*rows, self.start, *self.states.of(layer, SCAN))
        vectors = (self._vector(layer, "step_bias"), self._decay(layer), self._vector(layer, "skip"))
        return _OPERATORS.state_space_dual(*given, *vectors, dual.shortest_step)

    def _decay(self, layer: int) -> torch.Tensor:
        name = f"layers.{layer}.recurrence.decay"
        return self.constants.constant(f"{name}.negative", lambda: -self.weights.dense(name).exp())

    def _vector(self, layer: int, name: str) -> torch.Tensor:
        full = f"layers.{layer}.recurrence.{name}"
        return self.constants.constant(full, lambda: self.weights.dense(full))
