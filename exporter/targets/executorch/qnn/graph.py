"""A small graph of HTP operators: what `QnnOps` builds, what calibration runs in float, and what the compiler consumes.

Values are static in shape and carry no data; constants carry float data or quantized weights. The vocabulary is that of the
Qualcomm operator set (Conv2d, MatMul, RmsNorm, ...), limited to what a decoder needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch

from exporter.quantize.int4 import QuantizedMatrix


class Storage(StrEnum):
    """Element type of a value on the accelerator."""

    UINT16 = "uint16"
    UINT8 = "uint8"
    INT32 = "int32"

    @property
    def levels(self) -> int:
        return {"uint16": 65535, "uint8": 255}[self.value]

    @property
    def bytes(self) -> int:
        return {"uint16": 2, "uint8": 1, "int32": 4}[self.value]


class Role(StrEnum):
    """Whether a value crosses the boundary of the graph."""

    INPUT = "input"
    OUTPUT = "output"
    INNER = "inner"


@dataclass(frozen=True)
class Encoding:
    """Affine quantization: real = (code - zero_point) * scale, code in [0, storage.levels]."""

    storage: Storage
    scale: float
    zero_point: int

    @staticmethod
    def of_range(low: float, high: float, storage: Storage = Storage.UINT16) -> Encoding:
        """The encoding that spans [low, high] extended to contain zero, with zero exactly representable."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / storage.levels, 1e-9)
        return Encoding(storage, scale, min(max(round(-low / scale), 0), storage.levels))

    @property
    def low(self) -> float:
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        return (self.storage.levels - self.zero_point) * self.scale

    def quantize(self, values: torch.Tensor) -> torch.Tensor:
        """float32 -> int32 codes."""
        return (torch.round(values / self.scale) + self.zero_point).clamp_(0, self.storage.levels).int()

    def dequantize(self, codes: torch.Tensor) -> torch.Tensor:
        """integer codes -> float32."""
        return (codes.float() - self.zero_point) * self.scale

    def snap(self, values: torch.Tensor) -> torch.Tensor:
        """Rounds float values to what the encoding can hold."""
        return self.dequantize(self.quantize(values))


@dataclass(frozen=True)
class Value:
    """One tensor of the graph. `fixed` is an encoding given by construction; others are calibrated."""

    name: str
    shape: tuple[int, ...]
    role: Role = Role.INNER
    storage: Storage = Storage.UINT16
    fixed: Encoding | None = None


@dataclass(frozen=True)
class Constant:
    """Float data, stored as quantized codes over its own range."""

    name: str
    data: torch.Tensor
    storage: Storage = Storage.UINT16
    fixed: Encoding | None = None

    @property
    def encoding(self) -> Encoding:
        return self.fixed or Encoding.of_range(float(self.data.min()), float(self.data.max()), self.storage)


@dataclass(frozen=True)
class Kernel:
    """A weight matrix [out, in] used as a 1x1 convolution."""

    name: str
    matrix: QuantizedMatrix


Operand = Value | Constant | Kernel


@dataclass(frozen=True)
class Operation:
    """One operator. `parameters` are plain numbers and tuples; `compile.py` knows how each is passed on."""

    kind: str
    name: str
    inputs: tuple[Operand, ...]
    output: Value
    parameters: dict[str, Any] = field(default_factory=dict)


MOVES_DATA = frozenset({"Reshape", "Transpose", "StridedSlice", "Concat", "Pad"})
"""Operators that copy elements: their inputs and outputs share one encoding, so that nothing is rounded again."""


@dataclass
class HtpGraph:
    """Operations in order, with the values that cross the boundary in calling order."""

    name: str
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)

    def add_input(self, value: Value) -> Value:
        self.inputs.append(value)
        return value

    def add(self, kind: str, output: Value, *inputs: Operand, **parameters: Any) -> Value:
        """Appends an operation named after its output."""
        first = inputs[0]
        if kind == "Reshape" and isinstance(first, Value) and math.prod(first.shape) != math.prod(output.shape):
            raise ValueError(f"cannot reshape {first.name} {first.shape} to {output.shape}")
        self.operations.append(Operation(kind, output.name, inputs, output, parameters))
        if output.role is Role.OUTPUT:
            self.outputs.append(output)
        return output
