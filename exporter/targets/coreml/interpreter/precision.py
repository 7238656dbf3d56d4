"""How values of type fp16 are held."""

from __future__ import annotations

from enum import Enum

import torch


class Precision(Enum):
    """FP32 keeps values of type fp16 unrounded, so that a difference from a reference is an error of the program. FP16 rounds the
    result of every operator to fp16, as storage in fp16 with accumulation in fp32 does. Both hold them in float32."""

    FP32 = "fp32"
    FP16 = "fp16"


def rounded(value: torch.Tensor) -> torch.Tensor:
    """The nearest fp16 values, as float32."""
    return value.half().float()


def round_in_place(value: torch.Tensor, rows: int = 4096) -> torch.Tensor:
    """The same without a second copy of a large tensor."""
    for part in value.split(rows) if value.dim() else (value,):
        part.copy_(part.half())
    return value
