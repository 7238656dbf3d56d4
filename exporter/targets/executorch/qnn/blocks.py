"""How groups of a weight matrix become blocks of a convolution on the HTP."""

from __future__ import annotations

import math

SMALLEST_BLOCK = 16
"""Block-quantized convolutions with blocks of 4 channels compile and compute wrong numbers; 16, 32, 64 and 128 are exact."""

CHANNEL_MULTIPLE = 32
"""So do convolutions whose input channels are no multiple of this (144 or 176 channels in blocks of 16)."""


def kernel_columns(in_features: int, group_size: int) -> int:
    """Input channels of the convolution: padded with zeros where the HTP would compute wrong numbers without."""
    if in_features % CHANNEL_MULTIPLE == 0 and kernel_block(in_features, group_size) >= SMALLEST_BLOCK:
        return in_features
    multiple = max(group_size, CHANNEL_MULTIPLE)
    return math.ceil(in_features / multiple) * multiple


def kernel_block(in_features: int, group_size: int) -> int:
    """Largest block size that divides both the groups and the remainder group: remainder groups are exact in smaller blocks."""
    return math.gcd(in_features, group_size)
