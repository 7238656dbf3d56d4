"""Operators that move elements without changing them: shapes, order, joining and splitting."""

from __future__ import annotations

import torch
from torch.nn import functional

from exporter.targets.coreml.interpreter.operators.base import Call, Effect, Kernel, integers_of, operator


@operator("identity")
def identity(call: Call) -> Kernel:
    return Kernel(lambda x: x, ("x",), Effect.VIEWS)


@operator("reshape")
def reshape(call: Call) -> Kernel:
    """A 0 in `shape` keeps the size of x, counted from the last axis; -1 takes what is left."""
    if not call.is_constant("shape"):
        return Kernel(lambda x, shape: x.reshape(_resolved(x, integers_of(shape))), ("x", "shape"), Effect.VIEWS)
    wanted = list(call.integers("shape"))
    if 0 in wanted:
        return Kernel(lambda x: x.reshape(_resolved(x, wanted)), ("x",), Effect.VIEWS)
    return Kernel(lambda x: x.reshape(wanted), ("x",), Effect.VIEWS)


def _resolved(x: torch.Tensor, wanted: list[int]) -> list[int]:
    shift = x.dim() - len(wanted)
    return [size if size else x.shape[axis + shift] if axis + shift >= 0 else 1 for axis, size in enumerate(wanted)]


@operator("expand_dims")
def expand_dims(call: Call) -> Kernel:
    """Axes count in the result."""
    axes = call.integers("axes")
    rank = call.rank("x") + len(axes)
    wanted = sorted(axis % rank for axis in axes)
    if len(wanted) == 1:
        only = wanted[0]
        return Kernel(lambda x: x.unsqueeze(only), ("x",), Effect.VIEWS)

    def run(x: torch.Tensor) -> torch.Tensor:
        for axis in wanted:
            x = x.unsqueeze(axis)
        return x

    return Kernel(run, ("x",), Effect.VIEWS)


@operator("squeeze")
def squeeze(call: Call) -> Kernel:
    if not call.has("axes"):
        return Kernel(lambda x: x.squeeze(), ("x",), Effect.VIEWS)
    axes = call.integers("axes")
    return Kernel(lambda x: x.squeeze(axes), ("x",), Effect.VIEWS)


@operator("transpose")
def transpose(call: Call) -> Kernel:
    order = call.integers("perm")
    return Kernel(lambda x: x.permute(order), ("x",), Effect.VIEWS)


@operator("flatten2d")
def flatten2d(call: Call) -> Kernel:
    """Axes before `axis` become one, the rest the other."""
    axis = call.integer("axis", 1) % call.rank("x")
    return Kernel(lambda x: x.reshape(x.shape[:axis].numel(), -1), ("x",), Effect.VIEWS)


@operator("reverse")
def reverse(call: Call) -> Kernel:
    axes = call.integers("axes", tuple(range(call.rank("x"))))
    return Kernel(lambda x: x.flip(axes), ("x",), Effect.COPIES)


@operator("shape")
def shape(call: Call) -> Kernel:
    return Kernel(lambda x: torch.tensor(x.shape, dtype=torch.int32), ("x",), Effect.COPIES)


@operator("concat")
def concat(call: Call) -> Kernel:
    """Along `axis`, scalars as vectors of one; interleaved, the first slice of every part precedes the second of any."""
    axis = call.integer("axis")
    if call.flag("interleave"):
        return Kernel(
            lambda *parts: torch.stack(parts, axis % parts[0].dim() + 1).flatten(axis, axis % parts[0].dim() + 1),
            ("values",),
            Effect.COPIES,
        )
    return Kernel(
        lambda *parts: torch.cat([part if part.dim() else part.reshape(1) for part in parts], axis),
        ("values",),
        Effect.COPIES,
    )


@operator("stack")
def stack(call: Call) -> Kernel:
    axis = call.integer("axis")
    return Kernel(lambda *parts: torch.stack(parts, axis), ("values",), Effect.COPIES)


@operator("split")
def split(call: Call) -> Kernel:
    """Into `split_sizes`, or into `num_splits` equal parts."""
    axis = call.integer("axis")
    if call.has("split_sizes"):
        sizes = list(call.integers("split_sizes"))
        return Kernel(lambda x: x.split(sizes, axis), ("x",), Effect.VIEWS)
    count = call.integer("num_splits")
    return Kernel(lambda x: x.split(x.shape[axis] // count, axis), ("x",), Effect.VIEWS)


@operator("tile")
def tile(call: Call) -> Kernel:
    if not call.is_constant("reps"):
        return Kernel(lambda x, reps: x.repeat(integers_of(reps)), ("x", "reps"), Effect.COPIES)
    reps = call.integers("reps")
    return Kernel(lambda x: x.repeat(reps), ("x",), Effect.COPIES)


@operator("pad")
def pad(call: Call) -> Kernel:
    """`pad` holds (before, after) of the last axes, the foremost of them first; torch wants the last axis first."""
    mode = call.text("mode", "constant")
    fill = call.number("constant_val", 0.0) if mode == "constant" else None

    def run(x: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
        pairs = [integers_of(pair) for pair in amounts.reshape(-1, 2)]
        while pairs and mode != "constant" and pairs[0] == [0, 0]:
            pairs.pop(0)
        sizes = [size for pair in reversed(pairs) for size in pair]
        if mode == "constant":
            return functional.pad(x, sizes, value=fill)
        return _pad_edges(x, sizes, mode)

    return Kernel(run, ("x", "pad"), Effect.COPIES)


def _pad_edges(x: torch.Tensor, sizes: list[int], mode: str) -> torch.Tensor:
    """torch pads edges of at most three axes behind exactly two others."""
    padded = len(sizes) // 2
    lead = x.shape[: x.dim() - padded]
    flat = x.reshape(1, lead.numel(), *x.shape[x.dim() - padded :])
    result = functional.pad(flat, sizes, mode=mode)
    return result.reshape(*lead, *result.shape[2:])
