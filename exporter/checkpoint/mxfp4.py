"""MXFP4 as checkpoints store it: 32 numbers of four bits share a power of two.

OCP Microscaling Formats (MX) Specification 1.0: value = 2^(scale - 127) * element, elements E2M1 (sign, two bits of exponent, one of
mantissa), scales E8M0, of which 255 means that the block is not a number. The specification leaves the order in memory open; checkpoints
have two elements to a byte, low nibble first, blocks along a row, and the scales in a tensor of their own.
"""

from __future__ import annotations

import math

import torch

BLOCKS, SCALES = "_blocks", "_scales"
"""How the names of the two tensors end that hold one weight."""
BLOCK_VALUES = 32
BLOCK_BYTES = BLOCK_VALUES // 2
NOT_A_NUMBER = 255
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_ELEMENTS = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)])
_BYTES = torch.stack([_ELEMENTS.repeat(16), _ELEMENTS.repeat_interleave(16)], dim=1)
"""The two elements of each byte, [256, 2]."""
_POWERS = torch.tensor([math.ldexp(1.0, scale - 127) for scale in range(NOT_A_NUMBER)] + [math.nan])


def scales_name(tensor: str) -> str | None:
    """The tensor with the scales of the blocks in `tensor`; None for a tensor that does not hold blocks."""
    return f"{tensor.removesuffix(BLOCKS)}{SCALES}" if tensor.endswith(BLOCKS) else None


def unpacked_shape(blocks: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...] | None:
    """[..., N, 16] and [..., N] -> [..., 32 N], None for shapes that do not go together."""
    if len(blocks) < 2 or blocks[-1] != BLOCK_BYTES or blocks[:-1] != scales:
        return None
    return (*scales[:-1], scales[-1] * BLOCK_VALUES)


def unpack(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Blocks uint8 [..., N, 16] with scales uint8 [..., N] -> float32 [..., 32 N], exact but for what exceeds float32."""
    values = _BYTES[blocks.int()].flatten(-2) * _POWERS[scales.int()].unsqueeze(-1)
    return values.flatten(-2)
