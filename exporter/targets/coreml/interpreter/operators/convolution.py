"""Convolutions of one, two or three spatial axes."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from exporter.errors import GateFailed
from exporter.targets.coreml.interpreter.operators.base import Call, Kernel, operator

CONVOLUTIONS: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@operator("conv")
def conv(call: Call) -> Kernel:
    """x [N, C, *D] with weight [C_out, C / groups, *K]. A 1x1 convolution is a product of matrices, which is what a decoder's are."""
    spatial = call.rank("x") - 2
    strides = call.integers("strides", (1,) * spatial)
    dilations = call.integers("dilations", (1,) * spatial)
    groups = call.integer("groups", 1)
    kernel = [size or 0 for size in call.types["weight"].shape[2:]]
    if (
        set(kernel) == set(strides) == {1}
        and groups == 1
        and not _padding(call, [1] * spatial, kernel, strides, dilations)
    ):
        return Kernel(_pointwise, ("x", "weight", "bias"))
    convolve = CONVOLUTIONS[spatial]

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        padding = _padding(call, list(x.shape[2:]), kernel, strides, dilations)
        if padding:
            x = functional.pad(x, padding)
        return convolve(x, weight, bias, strides, 0, dilations, groups)

    return Kernel(run, ("x", "weight", "bias"))


def _pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if x.shape[2:].numel() == 1:
        result = functional.linear(x.flatten(1), weight.flatten(1), bias)
    else:
        result = torch.matmul(weight.flatten(1), x.flatten(2))
        if bias is not None:
            result += bias.unsqueeze(-1)
    return result.reshape(x.shape[0], weight.shape[0], *x.shape[2:])


def _padding(
    call: Call, sizes: list[int], kernel: list[int], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> list[int]:
    """(before, after) of every spatial axis, the last axis first as torch wants it; empty when nothing is padded."""
    kind = call.text("pad_type", "valid")
    if kind == "valid":
        return []
    if kind == "custom":
        given = call.integers("pad", (0,) * 2 * len(kernel))
        pairs = [(given[2 * axis], given[2 * axis + 1]) for axis in range(len(kernel))]
    elif kind in ("same", "same_lower"):
        pairs = [
            _same(size, (width - 1) * dilation + 1, stride, kind == "same_lower")
            for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
        ]
    else:
        raise GateFailed(f"conv {call.operation.name}: pad_type {kind!r} is not one of MIL", "convert it again")
    padding = [amount for pair in reversed(pairs) for amount in pair]
    return padding if any(padding) else []


def _same(size: int, width: int, stride: int, lower: bool) -> tuple[int, int]:
    """Padding that gives ceil(size / stride) results; an odd element goes behind, with `lower` in front."""
    total = max(0, (-(-size // stride) - 1) * stride + width - size)
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)
