"""Where a cached token lives, and who may see it: the one rule for rings, windows and sinks.

Keys are rotated before they are cached, so the order of slots carries no meaning: only the position that a slot holds
does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.decoder.spec import DecoderSpec

EMPTY = -1
"""Position of a slot that holds nothing yet."""


@dataclass(frozen=True)
class LayerCache:
    """Slots of one layer, none if it has no attention. A full-attention layer has `window` None and one slot per position of the context.

    A windowed layer keeps the first `sinks` positions forever and the rest in a ring of `window + chunk - 1` slots: the
    least that lets a whole chunk be written before its first token attends. It never needs more slots than the context.
    """

    slots: int
    window: int | None = None
    sinks: int = 0

    @property
    def name(self) -> str:
        """Layers of equal slots, window and sinks are equal, share one mask, and have this name in files and graphs."""
        return f"{'full' if self.window is None else f'window{self.window}'}_{self.slots}"

    @property
    def ring(self) -> int:
        return self.slots - self.sinks

    def slot_of(self, positions: np.ndarray) -> np.ndarray:
        """Slot of each absolute position: int64 [S] -> int64 [S]."""
        ringed = self.sinks + (positions - self.sinks) % self.ring
        return np.where(positions < self.sinks, positions, ringed)

    def held_positions(self, length: int) -> np.ndarray:
        """Position held by each slot once `length` tokens were written: int64 [C], EMPTY where none."""
        slots = np.arange(self.slots)
        if length == 0:
            return np.full(self.slots, EMPTY)
        last = length - 1
        ringed = last - (last - slots) % self.ring
        held = np.where(slots < self.sinks, slots, ringed)
        first = np.where(slots < self.sinks, 0, self.sinks)
        return np.where((held >= first) & (held <= last), held, EMPTY)

    def visible(self, queries: np.ndarray, held: np.ndarray) -> np.ndarray:
        """Whether query position [S] may read a slot that holds a position [C] -> bool [S, C]."""
        query, key = queries[:, None], held[None, :]
        seen = (key != EMPTY) & (key <= query)
        if self.window is None:
            return seen
        return seen & ((key > query - self.window) | (key < self.sinks))


@dataclass(frozen=True)
class CacheSettings:
    """What a recipe asks of the cache: longest context, prefill chunk, imposed window, sinks."""

    context: int
    chunk: int
    window: int | None = None
    sinks: int = 0


def cache_layout(spec: DecoderSpec, settings: CacheSettings) -> tuple[LayerCache, ...]:
    """Slots of every layer. An imposed window bounds each layer's own; one that, with its sinks, hides nothing of the
    context is no window."""
    layout = []
    for layer in spec.layers:
        if layer.attention is None:
            layout.append(LayerCache(0))
            continue
        windows = [value for value in (layer.attention.window, settings.window) if value is not None]
        window = min(windows, default=None)
        if window is None or window + settings.sinks >= settings.context:
            layout.append(LayerCache(settings.context))
        else:
            slots = min(window + settings.chunk - 1 + settings.sinks, settings.context)
            layout.append(LayerCache(slots, window, settings.sinks))
    return tuple(layout)
