"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from exporter.targets.coreml.interpreter.operators.base import OPERATORS, Call, Definition, Kernel

Reduce = Callable[[torch.Tensor, tuple[int, ...], bool], torch.Tensor]


def _product(x: torch.Tensor, axes: tuple[int, ...], keep: bool) -> torch.Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Reduce] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: torch.amax(x, axes, keepdim=keep),
    "reduce_mean": lambda x, axes, keep: torch.mean(x, axes, keepdim=keep, dtype=torch.float32),
    "reduce_min": lambda x, axes, keep: torch.amin(x, axes, keepdim=keep),
    "reduce_prod": _product,
    "reduce_sum": lambda x, axes, keep: torch.sum(x, axes, keepdim=keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}

ARGUMENTS: dict[str, Callable[..., torch.Tensor]] = {"reduce_argmax": torch.argmax, "reduce_argmin": torch.argmin}


def _over_axes(reduce: Reduce) -> Definition:
    def definition(call: Call) -> Kernel:
        axes = call.integers("axes", tuple(range(call.rank("x"))))
        keep = call.flag("keep_dims")
        return Kernel(lambda x: reduce(x, axes, keep), ("x",))

    return definition


def _along_axis(find: Callable[..., Any]) -> Definition:
    def definition(call: Call) -> Kernel:
        axis, keep = call.integer("axis", -1), call.flag("keep_dims")
        return Kernel(lambda x: find(x, axis, keepdim=keep), ("x",))

    return definition


for _name, _reduce in REDUCTIONS.items():
    OPERATORS.add(_name, _over_axes(_reduce))
for _name, _find in ARGUMENTS.items():
    OPERATORS.add(_name, _along_axis(_find))
