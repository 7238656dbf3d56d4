"""Order along an axis."""

from __future__ import annotations

from typing import Any

import torch

from exporter.targets.coreml.interpreter.operators.base import Call, Effect, Kernel, operator


@operator("topk")
def topk(call: Call) -> Kernel:
    """The k largest (or smallest) values along an axis and, where the operation has a second result, their indices."""
    count, axis, ascending = call.integer("k", 1), call.integer("axis", -1), call.flag("ascending")
    both = len(call.operation.results) > 1

    def run(x: torch.Tensor) -> Any:
        values, indices = torch.topk(x, x.shape[axis] if count == -1 else count, axis, largest=not ascending)
        return (values, indices) if both else values

    return Kernel(run, ("x",), Effect.COPIES)


@operator("argsort")
def argsort(call: Call) -> Kernel:
    axis, ascending = call.integer("axis", -1), call.flag("ascending")
    return Kernel(lambda x: torch.argsort(x, stable=True, dim=axis, descending=not ascending), ("x",))
