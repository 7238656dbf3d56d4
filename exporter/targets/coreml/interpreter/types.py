"""Element and tensor types of MIL, and what each becomes here."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch


class ElementType(StrEnum):
    """Element types of MIL that a package of the targets iOS15 to iOS26 may hold."""

    BOOL = "bool"
    STRING = "string"
    FP16 = "fp16"
    FP32 = "fp32"
    FP64 = "fp64"
    INT4 = "int4"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT1 = "uint1"
    UINT2 = "uint2"
    UINT3 = "uint3"
    UINT4 = "uint4"
    UINT6 = "uint6"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"

    @property
    def bits(self) -> int:
        """Bits that one element takes in a weight file; 0 for strings, which are never there."""
        if self in (ElementType.BOOL, ElementType.STRING):
            return 8 * (self is ElementType.BOOL)
        return int(self.value.lstrip("fpuint"))

    @property
    def is_signed(self) -> bool:
        return self.value.startswith("int")

    @property
    def is_float(self) -> bool:
        return self.value.startswith("fp")

    @property
    def storage(self) -> np.dtype:
        """How whole-byte elements lie in a file, little-endian; elements under a byte are unpacked to one byte each."""
        if self is ElementType.BOOL:
            return np.dtype(np.bool_)
        kind = "f" if self.is_float else "i" if self.is_signed else "u"
        return np.dtype(f"<{kind}{max(1, self.bits // 8)}")

    @property
    def computed(self) -> torch.dtype:
        """What the interpreter computes with: float32 for every float type, for which `Precision` says when values are rounded;
        the wider unsigned types, of which torch has no arithmetic, become int32."""
        if self.is_float:
            return torch.float32
        if self is ElementType.BOOL:
            return torch.bool
        narrow = {"int4": torch.int8, "int8": torch.int8, "int16": torch.int16, "int64": torch.int64}
        if self.is_signed:
            return narrow.get(self.value, torch.int32)
        return torch.uint8 if self.bits <= 8 else torch.int32


class TensorType(NamedTuple):
    """Shape and element type. A size of None is known only when the function is called."""

    shape: tuple[int | None, ...]
    dtype: ElementType

    @property
    def elements(self) -> int:
        """How many elements there are; an open size counts as one."""
        return math.prod(size or 1 if size is None else size for size in self.shape)

    @property
    def bytes(self) -> int:
        """Bytes that the elements take when packed."""
        return -(-self.elements * self.dtype.bits // 8)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a value of this shape is one of this type."""
        return len(shape) == len(self.shape) and all(
            declared is None or declared == size for declared, size in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.dtype.value}[{', '.join('?' if size is None else str(size) for size in self.shape)}]"
