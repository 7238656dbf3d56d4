"""Products of matrices."""

from __future__ import annotations

import torch
from torch.nn import functional

from exporter.targets.coreml.interpreter.operators.base import Call, Kernel, operator


@operator("linear")
def linear(call: Call) -> Kernel:
    """x [..., D_in] times the transpose of weight [D_out, D_in], plus bias [D_out]."""
    return Kernel(functional.linear, ("x", "weight", "bias"))


@operator("matmul")
def matmul(call: Call) -> Kernel:
    transpose_x, transpose_y = call.flag("transpose_x"), call.flag("transpose_y")

    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x.transpose(-1, -2) if transpose_x and x.dim() > 1 else x
        y = y.transpose(-1, -2) if transpose_y and y.dim() > 1 else y
        return torch.matmul(x, y)

    return Kernel(run, ("x", "y"))


@operator("einsum")
def einsum(call: Call) -> Kernel:
    equation = call.text("equation")
    return Kernel(lambda *values: torch.einsum(equation, *values), ("values",))
