"""Tensors made from sizes and numbers, and operators along an axis that keep its length."""

from __future__ import annotations

import torch

from exporter.targets.coreml.interpreter.operators.base import Call, Effect, Kernel, integers_of, operator


@operator("fill")
def fill(call: Call) -> Kernel:
    value, dtype = call.number("value", 0.0), call.output.dtype.computed
    return Kernel(lambda shape: torch.full(integers_of(shape), value, dtype=dtype), ("shape",), Effect.COPIES)


@operator("fill_like")
def fill_like(call: Call) -> Kernel:
    value, dtype = call.number("value", 0.0), call.output.dtype.computed
    return Kernel(lambda ref_tensor: torch.full(ref_tensor.shape, value, dtype=dtype), ("ref_tensor",), Effect.COPIES)


@operator("range_1d")
def range_1d(call: Call) -> Kernel:
    dtype = call.output.dtype.computed
    return Kernel(
        lambda start, end, step: torch.arange(start.item(), end.item(), step.item()).to(dtype), ("start", "end", "step")
    )


@operator("one_hot")
def one_hot(call: Call) -> Kernel:
    """A new axis of `one_hot_vector_size`; an index outside it has no `on_value`."""
    axis, rank = call.integer("axis", -1), call.rank("indices") + 1
    on, off, dtype = call.number("on_value", 1), call.number("off_value", 0), call.output.dtype.computed

    def run(indices: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        shape = [1] * rank
        shape[axis] = -1
        hit = indices.unsqueeze(axis) == torch.arange(int(size), dtype=indices.dtype).reshape(shape)
        return torch.where(hit, torch.tensor(on, dtype=dtype), torch.tensor(off, dtype=dtype))

    return Kernel(run, ("indices", "one_hot_vector_size"), Effect.COPIES)


@operator("band_part")
def band_part(call: Call) -> Kernel:
    """Keeps `lower` diagonals below the main one and `upper` above; negative keeps all."""
    lower, upper = call.integer("lower", -1), call.integer("upper", -1)

    def run(x: torch.Tensor) -> torch.Tensor:
        x = x if lower < 0 else torch.triu(x, -lower)
        return x.clone() if upper < 0 else torch.tril(x, upper)

    return Kernel(run, ("x",), Effect.COPIES)


@operator("cumsum")
def cumsum(call: Call) -> Kernel:
    """`exclusive` leaves the element itself out; `reverse` sums from the end."""
    axis, exclusive, backwards = call.integer("axis", 0), call.flag("exclusive"), call.flag("reverse")

    def run(x: torch.Tensor) -> torch.Tensor:
        ordered = x.flip(axis) if backwards else x
        total = torch.cumsum(ordered, axis, dtype=x.dtype)
        total = total - ordered if exclusive else total
        return total.flip(axis) if backwards else total

    return Kernel(run, ("x",))


@operator("non_zero")
def non_zero(call: Call) -> Kernel:
    """int32 [n, rank of x]: the indices of elements that are not 0."""
    return Kernel(torch.nonzero, ("x",))
