"""Gathers and scatters. Negative indices count from the end."""

from __future__ import annotations

from collections.abc import Callable

import torch

from exporter.errors import GateFailed
from exporter.targets.coreml.interpreter.operators.base import Call, Effect, Kernel, operator


def _positions(indices: torch.Tensor, size: int) -> torch.Tensor:
    return torch.where(indices < 0, indices + size, indices).long()


@operator("gather")
def gather(call: Call) -> Kernel:
    """x [..., n, ...] and indices [*N] give [..., *N, ...]; the first `batch_dims` axes of both go together."""
    axis, batch = call.integer("axis", 0) % call.rank("x"), call.integer("batch_dims", 0)

    def run(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        taken = x.index_select(axis, _positions(indices, x.shape[axis]).reshape(-1))
        return taken.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])

    def run_batched(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        pairs = zip(x.flatten(0, batch - 1), indices.flatten(0, batch - 1), strict=True)
        rows = [
            part.index_select(axis - batch, _positions(each, part.shape[axis - batch]).reshape(-1))
            for part, each in pairs
        ]
        return torch.stack(rows).reshape(x.shape[:axis] + indices.shape[batch:] + x.shape[axis + 1 :])

    return Kernel(run_batched if batch else run, ("x", "indices"), Effect.COPIES)


@operator("gather_along_axis")
def gather_along_axis(call: Call) -> Kernel:
    """numpy's take_along_axis."""
    axis = call.integer("axis", 0)
    return Kernel(
        lambda x, indices: torch.take_along_dim(x, _positions(indices, x.shape[axis]), axis),
        ("x", "indices"),
        Effect.COPIES,
    )


@operator("gather_nd")
def gather_nd(call: Call) -> Kernel:
    """The last axis of indices names one element or slice of x; the first `batch_dims` axes of both go together."""
    batch = call.integer("batch_dims", 0)

    def run(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        depth = indices.shape[-1]
        places = [_positions(indices[..., each], x.shape[batch + each]) for each in range(depth)]
        leading = []
        for axis in range(batch):
            shape = [1] * (indices.dim() - 1)
            shape[axis] = x.shape[axis]
            leading.append(torch.arange(x.shape[axis]).reshape(shape))
        return x[tuple(leading + places)]

    return Kernel(run, ("x", "indices"), Effect.COPIES)


REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""Modes of MIL as torch names them."""

Combine = Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor], torch.Tensor]


def _combine(call: Call) -> Combine:
    """How updates meet what is there: (data, axis, index of the same shape as updates, updates)."""
    mode = call.text("mode", "add")
    if mode == "update":
        return lambda data, axis, index, updates: data.scatter(axis, index, updates)
    if mode == "sub":
        return lambda data, axis, index, updates: data.scatter_reduce(axis, index, -updates, "sum")
    if mode == "div":
        return lambda data, axis, index, updates: data.scatter_reduce(axis, index, 1 / updates, "prod").to(data.dtype)
    if mode not in REDUCTIONS:
        raise GateFailed(
            f"{call.operation.operator} {call.operation.name}: mode {mode!r} is not one of MIL", "convert it again"
        )
    reduction = REDUCTIONS[mode]
    return lambda data, axis, index, updates: data.scatter_reduce(axis, index, updates, reduction)


@operator("scatter")
def scatter(call: Call) -> Kernel:
    """Slices of `data` along `axis`, at a vector of indices (or one index), meet those of `updates`."""
    axis, combine = call.integer("axis", 0) % call.rank("data"), _combine(call)

    def run(data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        flat = updates.reshape(*data.shape[:axis], indices.numel(), *data.shape[axis + 1 :])
        shape = [-1 if each == axis else 1 for each in range(data.dim())]
        index = _positions(indices, data.shape[axis]).reshape(shape).expand(flat.shape)
        return combine(data, axis, index, flat)

    return Kernel(run, ("data", "indices", "updates"))


@operator("scatter_along_axis")
def scatter_along_axis(call: Call) -> Kernel:
    """numpy's put_along_axis, combined by mode."""
    axis, combine = call.integer("axis", 0), _combine(call)
    return Kernel(
        lambda data, indices, updates: combine(data, axis, _positions(indices, data.shape[axis]), updates),
        ("data", "indices", "updates"),
    )


@operator("scatter_nd")
def scatter_nd(call: Call) -> Kernel:
    """The last axis of indices names one element or slice of data."""
    combine = _combine(call)

    def run(data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        depth = indices.shape[-1]
        rows = torch.zeros(indices.shape[:-1], dtype=torch.long)
        for axis in range(depth):
            rows = rows * data.shape[axis] + _positions(indices[..., axis], data.shape[axis])
        flat = data.reshape(data.shape[:depth].numel(), -1)
        parts = updates.reshape(rows.numel(), -1)
        index = rows.reshape(-1, 1).expand(parts.shape)
        return combine(flat, 0, index, parts).reshape(data.shape)

    return Kernel(run, ("data", "indices", "updates"))
