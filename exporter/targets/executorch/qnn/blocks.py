"""How groups of a weight matrix become blocks of a convolution on the HTP."""

from __future__ import annotations

import math

SMALLEST_BLOCK = 16
"""Block-quantized convolutions with blocks of 4 channels compile and compute wrong numbers; 16, 32 and 64 are exact."""


def kernel_columns(in_features: int, group_size: int) -> int:
    """Input channels of the convolution: padded with zeros when the remainder group leaves no common block of at least 16."""
    if group_size >= in_features or kernel_block(in_features, group_size) >= SMALLEST_BLOCK:
        return in_features
    return math.ceil(in_features / group_size) * group_size


def kernel_block(in_features: int, group_size: int) -> int:
    """Largest block size that divides both the groups and the remainder group: remainder groups are exact in smaller blocks."""
    return math.gcd(in_features, group_size)
