"""Slices: by index, by size, and updates of a slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from exporter.targets.coreml.interpreter.operators.base import Call, Effect, Kernel, integers_of, operator


@dataclass(frozen=True)
class SliceRule:
    """The constant part of a slice: strides and masks, one entry per axis."""

    stride: tuple[int, ...]
    begin_mask: tuple[bool, ...]
    end_mask: tuple[bool, ...]
    squeeze_mask: tuple[bool, ...]

    @staticmethod
    def of(call: Call) -> SliceRule:
        rank = call.rank("x")
        masks = (call.flags(name, rank) for name in ("begin_mask", "end_mask", "squeeze_mask"))
        return SliceRule(call.integers("stride", (1,) * rank), *masks)

    def index(self, begin: Sequence[int], end: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
        """Slices of stride 1 or more that hold the elements; those of negative stride come out in the order of memory. A squeezed
        axis keeps a size of one."""
        slices = []
        for axis, size in enumerate(shape):
            if self.squeeze_mask[axis]:
                start = begin[axis] % size
                slices.append(slice(start, start + 1))
                continue
            first = None if self.begin_mask[axis] else begin[axis]
            last = None if self.end_mask[axis] else end[axis]
            chosen = range(size)[slice(first, last, self.stride[axis])]
            if chosen.step < 0:
                chosen = chosen[::-1]
            slices.append(slice(chosen.start, max(chosen.start, chosen.stop), chosen.step))
        return tuple(slices)

    @property
    def flipped(self) -> list[int]:
        return [axis for axis, step in enumerate(self.stride) if step < 0 and not self.squeeze_mask[axis]]

    @property
    def squeezed(self) -> tuple[int, ...]:
        return tuple(axis for axis, squeeze in enumerate(self.squeeze_mask) if squeeze)


def _known_index(call: Call, rule: SliceRule) -> tuple[slice, ...] | None:
    """The slices, when nothing about them waits for run time."""
    shape = call.types["x"].shape
    if not (call.is_constant("begin") and call.is_constant("end")) or None in shape:
        return None
    return rule.index(call.integers("begin"), call.integers("end"), [size or 0 for size in shape])


@operator("slice_by_index")
def slice_by_index(call: Call) -> Kernel:
    """As numpy's basic slicing; negative strides count down."""
    rule = SliceRule.of(call)
    flipped, squeezed = rule.flipped, rule.squeezed
    effect = Effect.COPIES if flipped else Effect.VIEWS

    def finish(x: torch.Tensor) -> torch.Tensor:
        x = x.flip(flipped) if flipped else x
        return x.squeeze(squeezed) if squeezed else x

    known = _known_index(call, rule)
    if known is None:
        return Kernel(
            lambda x, begin, end: finish(x[rule.index(integers_of(begin), integers_of(end), x.shape)]),
            ("x", "begin", "end"),
            effect,
        )
    cut = _cut(known, [size or 0 for size in call.types["x"].shape])
    if not flipped and not squeezed:
        return Kernel(cut, ("x",), effect)
    return Kernel(lambda x: finish(cut(x)), ("x",), effect)


def _cut(index: tuple[slice, ...], shape: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Indexing that is several times faster in the common case of one axis and stride 1."""
    parts = [axis for axis, part in enumerate(index) if part != slice(0, shape[axis], 1)]
    if len(parts) == 1 and index[parts[0]].step == 1:
        axis, part = parts[0], index[parts[0]]
        start, length = part.start, part.stop - part.start
        return lambda x: x.narrow(axis, start, length)
    return lambda x: x[index]


@operator("slice_by_size")
def slice_by_size(call: Call) -> Kernel:
    """From `begin`, `size` elements; a size of -1 takes the rest."""

    def run(x: torch.Tensor, begin: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        index = []
        for start, length, extent in zip(integers_of(begin), integers_of(size), x.shape, strict=True):
            start %= extent or 1
            index.append(slice(start, extent if length == -1 else start + length))
        return x[tuple(index)]

    return Kernel(run, ("x", "begin", "size"), Effect.VIEWS)


@operator("slice_update")
def slice_update(call: Call) -> Kernel:
    """A copy of x in which the slice is `update`. The compiler takes `update_in_place` where nothing reads x afterwards."""
    update = update_in_place(call)
    return Kernel(lambda x, *rest: update.function(x.clone(), *rest), update.operands, Effect.COPIES)


def update_in_place(call: Call) -> Kernel:
    """The same, writing into x itself."""
    rule = SliceRule.of(call)
    known = _known_index(call, rule)
    if known is None:
        return Kernel(
            lambda x, update, begin, end: _write(
                x, rule, rule.index(integers_of(begin), integers_of(end), x.shape), update
            ),
            ("x", "update", "begin", "end"),
            Effect.VIEWS,
        )
    return Kernel(lambda x, update: _write(x, rule, known, update), ("x", "update"), Effect.VIEWS)


def _write(x: torch.Tensor, rule: SliceRule, index: tuple[slice, ...], update: torch.Tensor) -> torch.Tensor:
    place = x[index]
    values = update.reshape(place.shape)
    place.copy_(values.flip(rule.flipped) if rule.flipped else values)
    return x
