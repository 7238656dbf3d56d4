"""How an operator is defined: a function from one call in a program to a kernel, registered under the operator's MIL name.

The definition runs once, when a package is opened. It reads what is constant (axes, strides, modes) and returns a kernel: a Python
function of the tensors that are known only at run time, and the names of the parameters that supply them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from exporter.errors import GateFailed
from exporter.registry import Registry
from exporter.targets.coreml.interpreter.program import Operation
from exporter.targets.coreml.interpreter.types import TensorType


class Effect(Enum):
    """What a kernel does to memory and to values: decides what must be rounded, and what may be overwritten."""

    COMPUTES = "new values in new memory"
    COPIES = "values that existed before, in new memory"
    VIEWS = "values that existed before, perhaps in the same memory"


@dataclass(frozen=True)
class Kernel:
    """`function` takes one tensor for each name in `operands`, None for an optional parameter that is absent; a parameter that is a
    list of tensors comes last and is spread out. It returns a tensor, or a tuple where the operator has several results."""

    function: Callable[..., Any]
    operands: tuple[str, ...]
    effect: Effect = Effect.COMPUTES


@dataclass(frozen=True)
class Call:
    """One operation of a program, with the constants among its arguments and the types of all of them."""

    operation: Operation
    constants: Mapping[str, torch.Tensor | str]
    types: Mapping[str, TensorType]

    @property
    def output(self) -> TensorType:
        return self.operation.results[0].type

    def has(self, name: str) -> bool:
        return name in self.operation.inputs

    def is_constant(self, name: str) -> bool:
        return name in self.constants

    def integers(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A constant vector. Raises GateFailed when it is absent without a default, or not constant."""
        value = self._value(name, default)
        return value if isinstance(value, tuple) else (value,)

    def integer(self, name: str, default: int | None = None) -> int:
        return int(self._value(name, default))

    def flags(self, name: str, count: int) -> tuple[bool, ...]:
        return tuple(bool(value) for value in self.integers(name, (0,) * count))

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self._value(name, default))

    def number(self, name: str, default: float | None = None) -> Any:
        """A constant scalar as a Python number of its own kind."""
        return self._value(name, default)

    def text(self, name: str, default: str | None = None) -> str:
        return str(self._value(name, default))

    def rank(self, name: str) -> int:
        return len(self.types[name].shape)

    def _value(self, name: str, default: Any) -> Any:
        if name not in self.constants:
            if default is None or self.has(name):
                state = "not constant" if self.has(name) else "missing"
                raise GateFailed(
                    f"{self.operation.operator} {self.operation.name}: parameter {name} is {state}", "convert it again"
                )
            return default
        value = self.constants[name]
        if isinstance(value, str):
            return value
        return tuple(value.tolist()) if value.dim() else value.item()


Definition = Callable[[Call], Kernel]

OPERATORS: Registry[Definition] = Registry("Core ML operator")


def operator(*names: str) -> Callable[[Definition], Definition]:
    """Registers a definition under one or more MIL names."""

    def register(definition: Definition) -> Definition:
        for name in names:
            OPERATORS.add(name, definition)
        return definition

    return register


def integers_of(value: torch.Tensor) -> list[int]:
    """The elements of a tensor of integers, whatever its shape."""
    return value.reshape(-1).tolist()
