"""What a function takes, keeps and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from exporter.errors import UsageError
from exporter.registry import did_you_mean
from exporter.targets.coreml.interpreter.program import FlexibleShape, Function
from exporter.targets.coreml.interpreter.types import ElementType, TensorType


@dataclass(frozen=True)
class Signature:
    """Types by name. A flexible input has sizes of None in its type, and an entry in `flexible`."""

    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    states: Mapping[str, TensorType]
    flexible: Mapping[str, FlexibleShape]

    @staticmethod
    def of(function: Function) -> Signature:
        types = {result.name: result.type for operation in function.operations for result in operation.results}
        types |= function.inputs
        outputs = {name: types.get(name, TensorType((), ElementType.STRING)) for name in function.outputs}
        return Signature(function.inputs, outputs, function.states, function.flexible)

    def default_shape(self, name: str) -> tuple[int, ...]:
        """A shape that the input may have: the declared one, with the defaults of a flexible input."""
        if name in self.flexible:
            return self.flexible[name].default
        return tuple(1 if size is None else size for size in self.inputs[name].shape)


def as_input(name: str, value: object, signature: Signature) -> torch.Tensor:
    """An argument as the interpreter computes with it. Raises UsageError when its shape or kind does not fit."""
    declared = signature.inputs[name]
    array = np.asarray(value)
    flexible = signature.flexible.get(name)
    if not declared.accepts(array.shape) or (flexible is not None and not flexible.allows(array.shape)):
        wanted = f"{declared.dtype} {flexible}" if flexible is not None else str(declared)
        raise UsageError(f"input {name}: has shape {list(array.shape)}, wanted {wanted}", "see slm-export inspect")
    if array.dtype.kind == "f" and not declared.dtype.is_float:
        raise UsageError(f"input {name}: holds {array.dtype}, wanted {declared}", "see slm-export inspect")
    # a copy: what the program makes of an input must not depend on what the caller does to it
    return torch.from_numpy(np.array(array, dtype=str(declared.dtype.computed).removeprefix("torch.")))


def check_names(kind: str, given: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    """Raises UsageError naming what is missing or unknown."""
    for name in given:
        if name not in wanted:
            raise UsageError(f"unknown {kind} {name!r}", did_you_mean(name, list(wanted)))
    missing = sorted(set(wanted) - set(given))
    if missing:
        raise UsageError(f"{kind} {', '.join(missing)} missing", "see slm-export inspect")
