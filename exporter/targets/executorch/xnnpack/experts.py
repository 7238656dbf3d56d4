"""Experts as one node: this project's operator routes tokens and reads the INT4 codes of the experts that were chosen, and no others."""

from __future__ import annotations

from collections.abc import Callable

import torch

from exporter.decoder.experts import ROUTER, SELECTION_BIAS, GroupScore, RouterScore, expert_prefix
from exporter.decoder.spec import Activation, ExpertsSpec
from exporter.decoder.weights import DecoderWeights
from exporter.quantize.int4 import QuantizedMatrix
from exporter.targets.executorch.constants import Constants
from exporter.targets.executorch.kernels import operators  # noqa: F401  defines the operators
from exporter.targets.executorch.xnnpack.weights import half_where_exact

SLOPES = {Activation.SILU: 1.0, Activation.QUICK_GELU: 1.702}
"""Activations x * sigmoid(slope * x)."""


def mixture(
    constants: Constants,
    weights: DecoderWeights,
    prefix: str,
    experts: ExpertsSpec,
    value: torch.Tensor,
    rounded: bool,
) -> torch.Tensor:
    """float32 [S, D] -> [S, D]. `rounded`: activations become INT8, with a scale for every 32 of them, before each product."""
    routing, limit = experts.routing, experts.routing.limit

    def vector(name: str, present: bool) -> torch.Tensor:
        return constants.constant(
            f"{prefix}.{name}", lambda: weights.dense(f"{prefix}.{name}") if present else torch.empty(0)
        )

    stored = ExpertConstants(constants, weights, prefix, experts)
    return torch.ops.slm.experts(
        value,
        vector(ROUTER, True),
        vector(f"{ROUTER}.bias", routing.bias),
        vector(SELECTION_BIAS, routing.selection_bias),
        *stored.matrices("gate", "up"),
        *stored.matrices("down"),
        weights.quantized(f"{expert_prefix(prefix, 0)}.gate").format.group_size,
        routing.chosen,
        routing.score is RouterScore.SIGMOID,
        routing.renormalized,
        limit.groups if limit else 0,
        limit.chosen if limit else 0,
        limit is not None and limit.score is GroupScore.BEST_TWO,
        SLOPES[experts.expert.activation],
        experts.limit or 0.0,
        experts.up_offset,
        rounded,
    )


class ExpertConstants:
    """Matrices of all experts of a layer, one after another."""

    def __init__(self, constants: Constants, weights: DecoderWeights, prefix: str, experts: ExpertsSpec) -> None:
        self.constants, self.weights, self.experts = constants, weights, experts
        self.prefix = prefix
        self.names = [expert_prefix(prefix, expert) for expert in range(experts.routing.experts)]

    def matrices(self, *sides: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes uint8 [E, rows, bytes], nibbles plus 8; scales [E, rows, groups]; bias [E, rows], or empty. Sides lie one above the
        other."""
        name, constant = f"{self.prefix}.experts.{'_'.join(sides)}", self.constants.constant
        bias = self.experts.expert.bias
        return (
            constant(f"{name}.packed", lambda: self._stacked(sides, lambda matrix: matrix.packed ^ 0x88)),
            constant(
                f"{name}.packed_scales", lambda: half_where_exact(self._stacked(sides, lambda matrix: matrix.scales))
            ),
            constant(f"{name}.bias", lambda: self._biases(sides) if bias else torch.empty(0)),
        )

    def _stacked(self, sides: tuple[str, ...], part: Callable[[QuantizedMatrix], torch.Tensor]) -> torch.Tensor:
        quantized = self.weights.quantized
        return torch.stack([torch.cat([part(quantized(f"{name}.{side}")) for side in sides]) for name in self.names])

    def _biases(self, sides: tuple[str, ...]) -> torch.Tensor:
        dense = self.weights.dense
        return torch.stack([torch.cat([dense(f"{name}.{side}.bias") for side in sides]) for name in self.names])
