"""Normalizations."""

from __future__ import annotations

import torch

from exporter.targets.coreml.interpreter.operators.base import Call, Kernel, operator

Optional = torch.Tensor | None


def _affine(x: torch.Tensor, gamma: Optional, beta: Optional, shape: tuple[int, ...]) -> torch.Tensor:
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


def _standardized(x: torch.Tensor, axes: tuple[int, ...], epsilon: float) -> torch.Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + epsilon)


@operator("layer_norm")
def layer_norm(call: Call) -> Kernel:
    """Over `axes`; gamma and beta have the sizes of those axes."""
    rank = call.rank("x")
    axes = tuple(sorted(axis % rank for axis in call.integers("axes", tuple(range(rank)))))
    epsilon = call.number("epsilon", 1e-5)

    def run(x: torch.Tensor, gamma: Optional, beta: Optional) -> torch.Tensor:
        shape = tuple(size if axis in axes else 1 for axis, size in enumerate(x.shape))
        return _affine(_standardized(x, axes, epsilon), gamma, beta, shape)

    return Kernel(run, ("x", "gamma", "beta"))


@operator("instance_norm")
def instance_norm(call: Call) -> Kernel:
    """x [N, C, ...]: over everything behind the channels."""
    rank, epsilon = call.rank("x"), call.number("epsilon", 1e-5)
    axes, shape = tuple(range(2, rank)), (1, -1) + (1,) * (rank - 2)

    def run(x: torch.Tensor, gamma: Optional, beta: Optional) -> torch.Tensor:
        return _affine(_standardized(x, axes, epsilon), gamma, beta, shape)

    return Kernel(run, ("x", "gamma", "beta"))


@operator("batch_norm")
def batch_norm(call: Call) -> Kernel:
    """x [N, C, ...] with constant mean and variance per channel."""
    shape, epsilon = (1, -1) + (1,) * (call.rank("x") - 2), call.number("epsilon", 1e-5)

    def run(
        x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, gamma: Optional, beta: Optional
    ) -> torch.Tensor:
        normal = (x - mean.reshape(shape)) * torch.rsqrt(variance + epsilon).reshape(shape)
        return _affine(normal, gamma, beta, shape)

    return Kernel(run, ("x", "mean", "variance", "gamma", "beta"))


@operator("l2_norm")
def l2_norm(call: Call) -> Kernel:
    """x / sqrt(sum of squares over the last three axes + epsilon)."""
    epsilon = call.number("epsilon", 1e-6)
    return Kernel(lambda x: x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon), ("x",))
