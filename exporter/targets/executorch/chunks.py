"""The host's bookkeeping around a method that takes token ids and one position, and keeps the last token's logits only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from exporter.targets.executorch.host import HostLayout

Call = Callable[[list[int], int], np.ndarray]
"""Token ids and the position of the first one -> logits after the last one, float32 [1, V]."""


class ChunkedDriver:
    """See `runtime.driver.Driver`. The caches belong to the method; what lies in them from an earlier conversation is never read: which
    slots hold something follows from the position alone."""

    def __init__(self, call: Call, layout: HostLayout, kv_bytes: int, engine: str) -> None:
        self.context, self.chunk, self.vocab_size = layout.context, layout.chunk, layout.vocab_size
        self.engine, self.threads = engine, layout.threads
        self._call, self._kv_bytes, self._length = call, kv_bytes, 0

    def reset(self) -> None:
        self._length = 0

    def prefill(self, token_ids: list[int]) -> np.ndarray:
        """float32 [n, V]: logits after each of n tokens. The program keeps the last token's only, so every chunk is computed once for
        each of its tokens, longer by one each time: what is written again into the caches is what was there."""
        return np.concatenate(list(self._rows(token_ids)))

    def prompt(self, token_ids: list[int]) -> np.ndarray:
        """float32 [V]: logits after the last token."""
        logits = [self._append(chunk) for chunk in self._chunks(token_ids)]
        return logits[-1][0]

    def decode(self, token_id: int) -> np.ndarray:
        """float32 [V]."""
        return self._append([token_id])[0]

    def kv_bytes(self) -> int:
        """As the program declares them."""
        return self._kv_bytes

    def _chunks(self, token_ids: list[int]) -> Iterator[list[int]]:
        return (token_ids[start : start + self.chunk] for start in range(0, len(token_ids), self.chunk))

    def _rows(self, token_ids: list[int]) -> Iterator[np.ndarray]:
        for chunk in self._chunks(token_ids):
            for count in range(1, len(chunk) + 1):
                yield self._call(chunk[:count], self._length)
            self._length += len(chunk)

    def _append(self, token_ids: list[int]) -> np.ndarray:
        logits = self._call(token_ids, self._length)
        self._length += len(token_ids)
        return logits
