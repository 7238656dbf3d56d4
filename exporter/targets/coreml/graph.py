"""A thin layer over coremltools' MIL builder: one function of a program, its constants stored once, values cast when types differ.

The builder checks every operation against the operator set of iOS 18 while it is added: types, ranks and shapes of a finished function
are consistent. Nothing is rewritten afterwards, see `package.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import coremltools
import numpy as np
from coremltools.converters.mil.mil import Builder, Function, Program, types

from exporter.targets.coreml.names import label

TARGET = coremltools.target.iOS18
KINDS: dict[str, Any] = {"fp16": np.float16, "fp32": np.float32, "int32": np.int32}
TYPES = {"fp16": types.fp16, "fp32": types.fp32, "int32": types.int32}

Value = Any
"""coremltools' `Var`."""


class FunctionGraph:
    """One function while it is built; a context manager, because the builder writes into the function that is open."""

    def __init__(
        self, program: Program, name: str, inputs: Mapping[str, tuple[int, ...]], states: Mapping[str, Any]
    ) -> None:
        """`inputs` are int32, `states` fp16; both map names to shapes."""
        Builder.name_count.clear()  # names are unique within a function, and equal builds get equal names
        specs = {item: Builder.TensorSpec(shape, dtype=types.int32) for item, shape in inputs.items()}
        specs |= {item: Builder.StateTensorSpec(shape, dtype=types.fp16) for item, shape in states.items()}
        self.program, self.name = program, name
        self.function = Function(specs, TARGET)
        self._constants: dict[str, Value] = {}
        self.shared: dict[str, Value] = {}
        """Values that whoever makes them may keep here, to be made once per function."""
        self._stack = ExitStack()

    def __enter__(self) -> FunctionGraph:
        self._stack.enter_context(self.function)
        return self

    def __exit__(self, kind: Any, fault: Any, trace: Any) -> None:
        self._stack.__exit__(kind, fault, trace)
        if fault is None:
            self.program.add_function(self.name, self.function)

    def input(self, name: str) -> Value:
        return self.function.inputs[name]

    def output(self, value: Value, name: str) -> None:
        """Declares the only output."""
        named = Builder.identity(x=value, name=name)
        self.function.set_outputs([named])

    def node(self, operator: str, name: str | None = None, **inputs: Any) -> Any:
        """Appends an operator of MIL; one output, or a list of several."""
        if name is not None:
            inputs["name"] = self._fresh(label(name))
        return getattr(Builder, operator)(**inputs)

    def constant(self, name: str, array: np.ndarray) -> Value:
        """A stored tensor. The same name means the same tensor, in this function and in the others of the program."""
        if name not in self._constants:
            stored = Builder.const(val=np.ascontiguousarray(array), name=self._fresh(label(name)))
            stored.op.weight_id = name
            self._constants[name] = stored
        return self._constants[name]

    def cast(self, value: Value, kind: str) -> Value:
        """`kind` is fp16, fp32 or int32; nothing is added when the value has that type."""
        return value if value.dtype is TYPES[kind] else Builder.cast(x=value, dtype=kind)

    def binary(self, operator: str, left: Value, right: Value | float) -> Value:
        """`add`, `mul` and their like; a number takes the type of the value."""
        if isinstance(right, (int, float)):
            right = scalar(right, left)
        return self.node(operator, x=left, y=right)

    def soft_cap(self, value: Value, cap: float) -> Value:
        """cap * tanh(value / cap)."""
        return self.binary("mul", self.node("tanh", x=self.binary("real_div", value, cap)), cap)

    def slice(self, value: Value, axis: int, start: int, stop: int) -> Value:
        """Elements [start, stop) of one axis; nothing is added when that is all."""
        if start == 0 and stop == value.shape[axis]:
            return value
        begin, end = [0] * len(value.shape), list(value.shape)
        begin[axis], end[axis] = start, stop
        return self.node("slice_by_index", x=value, begin=begin, end=end)

    def padded(self, value: Value, axis: int, size: int) -> Value:
        """Zeros appended until the axis has `size` elements."""
        missing = size - value.shape[axis]
        if not missing:
            return value
        shape = [missing if index == axis % len(value.shape) else length for index, length in enumerate(value.shape)]
        kind = KINDS["fp16"] if value.dtype is types.fp16 else KINDS["fp32"]
        return self.node("concat", values=[value, np.zeros(shape, kind)], axis=axis)

    def _fresh(self, name: str) -> str:
        count = Builder.name_count[name]
        Builder.name_count[name] += 1
        return name if count == 0 else f"{name}_{count}"


def scalar(number: float, like: Value) -> Any:
    """A number of the type of a value."""
    for kind, numpy_kind in KINDS.items():
        if like.dtype is TYPES[kind]:
            return numpy_kind(number)
    raise ValueError(f"no scalar of type {like.dtype}")
