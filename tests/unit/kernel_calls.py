"""Calls the attention kernels without ExecuTorch, and reads their caches in the order of the oracle's codec."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from exporter.decoder.cache import LayerCache
from exporter.decoder.spec import AttentionSpec
from exporter.quantize.formats import KvFormat
from exporter.quantize.kv_codec import LayerKvConstants
from exporter.targets.executorch.kernels import build


def address(values: np.ndarray | torch.Tensor | None) -> ctypes.c_void_p:
    if values is None:
        return ctypes.c_void_p(None)
    return ctypes.c_void_p(values.ctypes.data if isinstance(values, np.ndarray) else values.data_ptr())


@dataclass
class KernelLayer:
    """One layer's cache in the kernels' own order."""

    library: ctypes.CDLL
    path: str
    attention: AttentionSpec
    ring: LayerCache
    kv_format: KvFormat
    constants: LayerKvConstants
    fine: bool = False
    learned: np.ndarray | None = None
    """Learned sinks [H]."""
    length: int = 0

    def __post_init__(self) -> None:
        spec, slots = self.attention, self.ring.slots
        bytes_per_side = spec.kv_heads * slots * spec.head_dim * self.kv_format.bits // 8
        self.keys, self.values = (np.full(bytes_per_side, 0xA5, np.uint8) for _ in range(2))
        self.scales = np.zeros(((4 if self.kv_format.zero_point else 2) * spec.kv_heads, slots), np.float16)
        key, value = self.constants.key, self.constants.value
        self.packed = torch.stack((key.center, key.balance, value.center, value.balance)).contiguous()
        self.slopes = None if spec.distance_slopes is None else np.array(spec.distance_slopes, np.float32)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Queries [S, H, Hd], keys and values [S, K, Hd] -> [S, H * Hd]; the cache goes on."""
        spec, out = self.attention, torch.empty_like(query)
        shape = (
            self.ring.slots,
            spec.kv_heads,
            spec.query_heads,
            spec.head_dim,
            self.ring.window or 0,
            self.ring.sinks,
        )
        settings = (
            self.kv_format.bits,
            self.kv_format.zero_point,
            self.kv_format.rotation,
            self.fine,
            self.length,
            query.shape[0],
        )
        sizes = np.array((*shape, *settings), np.int64)
        given = [self.packed, self.slopes, self.learned, self.keys, self.values, self.scales, query, key, value, out]
        scale, cap = ctypes.c_float(spec.score_scale), ctypes.c_float(spec.score_cap or 0.0)
        found = self.library.slm_attention(self.path.encode(), address(sizes), scale, cap, *map(address, given))
        assert found, f"this build has no path {self.path}"
        self.length += query.shape[0]
        return out.flatten(1)

    def codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values as plain codes uint8 [C, K, Hd]."""
        spec, slots = self.attention, self.ring.slots
        blocks = self.keys.reshape(spec.kv_heads, slots // 16, -1, 16, 4)
        keys = _unpacked(blocks.swapaxes(1, 2).reshape(spec.kv_heads, -1, slots, 4), self.kv_format.bits)  # [K, Hd, C]
        values = _unpacked(self.values.reshape(spec.kv_heads, -1, spec.head_dim, 4), self.kv_format.bits)  # [K, C, Hd]
        return keys.transpose(2, 0, 1), values.transpose(1, 0, 2)


def _unpacked(lanes: np.ndarray, bits: int) -> np.ndarray:
    """[K, n / quad, others, 4] -> codes [K, n, others]."""
    quads = (
        lanes[:, :, None] if bits == 8 else np.stack((lanes & 0xF, lanes >> 4), axis=2)
    )  # [K, n / quad, terms, others, 4]
    return quads.transpose(0, 1, 2, 4, 3).reshape(lanes.shape[0], -1, lanes.shape[2])


def kernel_library() -> ctypes.CDLL:
    """The operators' library, built where there is a compiler; skips the test elsewhere."""
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    pytest.importorskip("executorch.extension.pybindings.portable_lib")
    library = ctypes.CDLL(str(build.operators_library()))
    library.slm_fastest_path.restype = ctypes.c_char_p
    return library
