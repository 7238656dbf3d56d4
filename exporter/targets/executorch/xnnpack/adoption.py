"""Puts the oracle's cache into the buffers of a loaded program, in whichever order the program's attention reads them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from exporter.targets.executorch.xnnpack.names import CACHE_PREFIX, KEYS, VALUES

QUAD, BLOCK = 4, 16
"""Codes of a lane at 8 bits, and slots of a block: see kernels/attention.h."""

Attribute = Callable[[str], torch.Tensor]
"""A buffer of the program by name; writing to it changes the program's memory."""


def adopt_packed(attribute: Attribute, layer: int, stored: dict[str, np.ndarray], bits: int) -> None:
    """`TorchLayerCache.stored` of one layer -> codes of this project's attention operator."""
    found = {
        KEYS: key_lanes(_codes(stored["keys"], bits), bits),
        VALUES: value_lanes(_codes(stored["values"], bits), bits),
        "scales": _scales(stored),
    }
    for name, numbers in found.items():
        buffer = attribute(f"{CACHE_PREFIX}.layers.{layer}.{name}")
        buffer.copy_(torch.from_numpy(numbers).reshape(buffer.shape))


def adopt_plain(attribute: Attribute, layer: int, stored: dict[str, np.ndarray]) -> None:
    """The same for a program of ExecuTorch's own operators, which keeps the codec's order."""
    for side in (KEYS, VALUES):
        for part, name in (("codes", side), ("scales", f"{side}.scale"), ("zeros", f"{side}.zero")):
            if name in stored:
                buffer = attribute(f"{CACHE_PREFIX}.layers.{layer}.{side}_{part}")
                buffer.copy_(torch.from_numpy(stored[name]).reshape(buffer.shape))


def key_lanes(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [C, K, Hd] -> bytes in the order [K][C / 16][Hd / quad][16][4]."""
    slots, heads, _ = codes.shape
    blocks = codes.reshape(slots // BLOCK, BLOCK, heads, -1, 32 // bits).transpose(2, 0, 3, 1, 4)
    return _bytes(blocks, bits)


def value_lanes(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [C, K, Hd] -> bytes in the order [K][C / quad][Hd][4]."""
    quads = codes.reshape(-1, 32 // bits, *codes.shape[1:]).transpose(2, 0, 3, 1)
    return _bytes(quads, bits)


def _bytes(lanes: np.ndarray, bits: int) -> np.ndarray:
    """Lanes of codes [..., quad] -> [..., 4]; at 4 bits the last four codes are the high nibbles."""
    return lanes if bits == 8 else lanes[..., :QUAD] | (lanes[..., QUAD:] << 4)


def _codes(stored: np.ndarray, bits: int) -> np.ndarray:
    """float32 [C, K, bytes] -> uint8 [C, K, Hd]."""
    numbers = stored.astype(np.uint8)
    return numbers if bits == 8 else np.stack((numbers & 0xF, numbers >> 4), axis=-1).reshape(*numbers.shape[:2], -1)


def _scales(stored: dict[str, np.ndarray]) -> np.ndarray:
    """float16 [sides, K, C]: scales of keys and values, then their zero points where there are any."""
    names = [f"{side}.{part}" for part in ("scale", "zero") for side in (KEYS, VALUES) if f"{side}.{part}" in stored]
    return np.stack([stored[name][..., 0].T for name in names]).astype(np.float16)
