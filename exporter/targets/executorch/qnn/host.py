"""The host side of an NPU artifact: everything that an app does between two calls of the accelerator.

Written with numpy only and meant to be ported to Kotlin or C++: look up embeddings, compute rotary angles, build masks, keep the
caches. All numbers that cross into the graph are integer codes; `HostLayout` holds every constant that is needed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

HIDDEN, VISIBLE = 0, 65535
"""Mask codes: 65535 is zero, 0 is below every score."""


@dataclass(frozen=True)
class HostLayer:
    """Cache of one layer. `window` None means full attention; sink positions stay forever in the first slots."""

    slots: int
    window: int | None
    sinks: int
    mask: str
    kv_heads: int
    head_dim: int
    key_zero: int
    value_zero: int

    def slot_of(self, position: int) -> int:
        if position < self.sinks:
            return position
        return self.sinks + (position - self.sinks) % (self.slots - self.sinks)


@dataclass(frozen=True)
class HostLayout:
    """Constants of an artifact, stored in its `host.json`."""

    context: int
    chunk: int
    hidden_size: int
    vocab_size: int
    hidden_scale: float
    hidden_zero: int
    logits_scale: float
    logits_zero: int
    rotary_frequencies: tuple[float, ...]
    kv_bits: int
    embedding_group_size: int
    layers: tuple[HostLayer, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> HostLayout:
        layers = tuple(HostLayer(**layer) for layer in values["layers"])
        rest = {key: value for key, value in values.items() if key not in ("layers", "rotary_frequencies")}
        return HostLayout(layers=layers, rotary_frequencies=tuple(values["rotary_frequencies"]), **rest)


class KvRing:
    """Cached codes of one layer: keys [K, Hd, slots], values [K, slots, Hd]; INT4 holds two codes per byte along the last axis."""

    def __init__(self, layer: HostLayer, bits: int) -> None:
        self.layer, self.bits = layer, bits
        self.keys = self._empty((layer.kv_heads, layer.head_dim, layer.slots), layer.key_zero)
        self.values = self._empty((layer.kv_heads, layer.slots, layer.head_dim), layer.value_zero)

    def _empty(self, shape: tuple[int, int, int], zero: int) -> np.ndarray:
        if self.bits == 8:
            return np.full(shape, zero, np.uint8)
        return np.full((*shape[:2], shape[2] // 2), zero | (zero << 4), np.uint8)

    def write(self, position: int, key: np.ndarray, value: np.ndarray) -> None:
        """Stores one token's codes: key and value [K, Hd]."""
        slot = self.layer.slot_of(position)
        if self.bits == 8:
            self.keys[:, :, slot] = key
            self.values[:, slot, :] = value
            return
        byte, shift = slot // 2, 4 * (slot % 2)
        self.keys[:, :, byte] = (self.keys[:, :, byte] & (0xF0 >> shift)) | (key << shift)
        self.values[:, slot, :] = value[:, 0::2] | (value[:, 1::2] << 4)

    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class Host:
    """State of one conversation: caches and the number of tokens in them."""

    def __init__(self, layout: HostLayout, embedding_row: Any) -> None:
        """`embedding_row(token_id)` returns float32 [D]."""
        self.layout = layout
        self.embedding_row = embedding_row
        self.length = 0
        self.rings = [KvRing(layer, layout.kv_bits) for layer in layout.layers]

    def inputs(self, token_ids: list[int], chunk: int) -> dict[str, np.ndarray]:
        """Named inputs for up to `chunk` tokens; short chunks are padded with tokens that nobody attends to."""
        layout = self.layout
        hidden = np.zeros((chunk, layout.hidden_size), np.float32)
        for row, token_id in enumerate(token_ids):
            hidden[row] = self.embedding_row(token_id)
        codes = np.clip(np.rint(hidden / layout.hidden_scale) + layout.hidden_zero, 0, 65535).astype(np.uint16)
        named = {"hidden": codes[None, None]}
        named["cosine"], named["sine"] = self._angles(chunk)
        for index, (layer, ring) in enumerate(zip(layout.layers, self.rings, strict=True)):
            if layer.mask not in named:
                named[layer.mask] = self._mask(layer, chunk, len(token_ids))
            named[f"layers.{index}.keys"], named[f"layers.{index}.values"] = ring.keys[None], ring.values[None]
        return named

    def commit(self, outputs: dict[str, np.ndarray], count: int) -> np.ndarray:
        """Caches the first `count` tokens of a chunk's outputs and returns their logits, float32 [count, V]."""
        for index, ring in enumerate(self.rings):
            keys, values = outputs[f"layers.{index}.new_keys"][0], outputs[f"layers.{index}.new_values"][0]
            for token in range(count):
                ring.write(self.length + token, keys[:, :, token], values[:, token, :])
        self.length += count
        codes = outputs["logits"].reshape(-1, self.layout.vocab_size)[:count].astype(np.float32)
        return (codes - self.layout.logits_zero) * np.float32(self.layout.logits_scale)

    def _angles(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(self.length, self.length + chunk, dtype=np.float32)
        angles = positions[:, None] * np.asarray(self.layout.rotary_frequencies, np.float32)[None]
        cosine = np.rint(np.cos(angles) * 32767).astype(np.int32) + 32768
        sine = np.rint(np.sin(angles) * 32767).astype(np.int32) + 32768
        return cosine.astype(np.uint16)[None, :, None], sine.astype(np.uint16)[None, :, None]

    def _mask(self, layer: HostLayer, chunk: int, count: int) -> np.ndarray:
        """[1, 1, chunk, slots + chunk]: which cached slots and which tokens of this chunk each token sees."""
        held = self._held(layer)
        own = np.where(np.arange(chunk) < count, self.length + np.arange(chunk), -1)
        keys = np.concatenate((held, own))[None, :]
        queries = self.length + np.arange(chunk)[:, None]
        seen = (keys >= 0) & (keys <= queries)
        if layer.window is not None:
            seen &= (keys > queries - layer.window) | (keys < layer.sinks)
        return np.where(seen, VISIBLE, HIDDEN).astype(np.uint16)[None, None]

    def _held(self, layer: HostLayer) -> np.ndarray:
        """Position held by each slot, -1 where none."""
        slots = np.arange(layer.slots)
        last = self.length - 1
        ringed = last - (last - slots) % (layer.slots - layer.sinks)
        held = np.where(slots < layer.sinks, slots, ringed)
        first = np.where(slots < layer.sinks, 0, layer.sinks)
        return np.where((held >= first) & (held <= last), held, -1)
