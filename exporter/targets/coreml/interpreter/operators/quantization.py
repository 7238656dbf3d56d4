"""Quantization of activations at run time."""

from __future__ import annotations

import torch

from exporter.targets.coreml.interpreter.operators.base import Call, Kernel, operator

RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}


def _along(value: torch.Tensor, axis: int, rank: int) -> torch.Tensor:
    return value if value.dim() == 0 else value.reshape([-1 if each == axis % rank else 1 for each in range(rank)])


@operator("quantize")
def quantize(call: Call) -> Kernel:
    """clip(round(input / scale) + zero_point) in the range of the result's type."""
    rank, axis = call.rank("input"), call.integer("axis", 0)
    low, high = RANGES[call.output.dtype.value]

    def run(value: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None) -> torch.Tensor:
        codes = torch.round(value / _along(scale, axis, rank))
        if zero_point is not None:
            codes = codes + _along(zero_point, axis, rank)
        return codes.clamp(low, high)

    return Kernel(run, ("input", "scale", "zero_point"))


@operator("dequantize")
def dequantize(call: Call) -> Kernel:
    """scale (input - zero_point)."""
    rank, axis = call.rank("input"), call.integer("axis", 0)

    def run(value: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None) -> torch.Tensor:
        codes = value.float()
        if zero_point is not None:
            codes = codes - _along(zero_point, axis, rank)
        return codes * _along(scale, axis, rank)

    return Kernel(run, ("input", "scale", "zero_point"))
