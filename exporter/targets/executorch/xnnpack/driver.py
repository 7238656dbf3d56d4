"""Runs an ExecuTorch program through the runtime's Python binding: token ids and one position in, the last token's logits out.

The caches are buffers of the program. What lies in them from an earlier conversation is never read: which slots hold something
follows from the position alone.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import executorch.kernels.quantized  # noqa: F401  registers the operators of quantized tables
import numpy as np
import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime, Verification

from exporter.targets.executorch.kernels.build import operators_library
from exporter.targets.executorch.kernels.operators import load_library
from exporter.targets.executorch.xnnpack.host import HostLayout
from exporter.targets.executorch.xnnpack.names import HOST_FILE, METHOD, PROGRAM_FILE
from exporter.targets.executorch.xnnpack.program import read_methods


class ExecutorchDriver:
    """See `runtime.driver.Driver`."""

    def __init__(self, path: Path, layout: HostLayout) -> None:
        self._path, self.context, self.chunk, self.vocab_size = path, layout.context, layout.chunk, layout.vocab_size
        self.engine, self.threads = f"executorch {importlib.metadata.version('executorch')}", layout.threads
        self._program = Runtime.get().load_program(path, verification=Verification.Minimal)
        method = self._program.load_method(METHOD)
        assert method is not None
        self._method = method
        self._length = 0

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
        """As the loaded program declares them: the runtime allocates all of it when it loads."""
        return sum(cache.bytes for cache in read_methods(self._path)[METHOD].caches)

    def _chunks(self, token_ids: list[int]) -> Iterator[list[int]]:
        return (token_ids[start : start + self.chunk] for start in range(0, len(token_ids), self.chunk))

    def _rows(self, token_ids: list[int]) -> Iterator[np.ndarray]:
        for chunk in self._chunks(token_ids):
            for count in range(1, len(chunk) + 1):
                yield self._run(chunk[:count])
            self._length += len(chunk)

    def _append(self, token_ids: list[int]) -> np.ndarray:
        logits = self._run(token_ids)
        self._length += len(token_ids)
        return logits

    def _run(self, token_ids: list[int]) -> np.ndarray:
        logits: torch.Tensor = self._method.execute([torch.tensor(token_ids), torch.tensor([self._length])])[0]
        return logits.numpy().copy()


def open_driver(folder: Path) -> ExecutorchDriver:
    """Opens an export with ExecuTorch's own runtime."""
    layout = HostLayout.read(folder / HOST_FILE)
    if layout.own_operators:
        load_library(operators_library())
    if layout.threads:
        portable_lib._unsafe_reset_threadpool(layout.threads)  # before a method is loaded: it holds on to the pool
    return ExecutorchDriver(folder / PROGRAM_FILE, layout)
