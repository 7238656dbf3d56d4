"""Runs an ExecuTorch program through the runtime's Python binding: token ids and one position in, the last token's logits out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import executorch.kernels.quantized  # noqa: F401  registers the operators of quantized tables
import numpy as np
import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime, Verification

from exporter.targets.executorch.chunks import ChunkedDriver
from exporter.targets.executorch.host import HostLayout
from exporter.targets.executorch.kernels.build import operators_library
from exporter.targets.executorch.kernels.operators import load_library
from exporter.targets.executorch.xnnpack.names import HOST_FILE, METHOD, PROGRAM_FILE
from exporter.targets.executorch.xnnpack.program import read_methods


class LoadedProgram:
    """The method of a program. The runtime needs the program for as long as its method is in use."""

    def __init__(self, path: Path, traced: bool = False) -> None:
        self._program = Runtime.get().load_program(path, verification=Verification.Minimal, enable_etdump=traced)
        method = self._program.load_method(METHOD)
        assert method is not None
        self._method = method

    def __call__(self, token_ids: list[int], position: int) -> np.ndarray:
        logits: torch.Tensor = self._method.execute([torch.tensor(token_ids), torch.tensor([position])])[0]
        return logits.numpy().copy()

    def write_trace(self, path: Path) -> None:
        """An ETDump of every call so far."""
        self._program.write_etdump_result_to_file(str(path), str(path.with_suffix(".debug")))


def open_driver(folder: Path) -> ChunkedDriver:
    """Opens an export with ExecuTorch's own runtime, which allocates all of the caches when it loads."""
    return _open(folder, traced=False)[0]


def open_traced(folder: Path) -> tuple[ChunkedDriver, Callable[[Path], None]]:
    """The same, and what writes an ETDump of all calls."""
    return _open(folder, traced=True)


def _open(folder: Path, traced: bool) -> tuple[ChunkedDriver, Callable[[Path], None]]:
    layout = HostLayout.read(folder / HOST_FILE)
    prepare_runtime(layout)
    kv_bytes = sum(cache.bytes for cache in read_methods(folder / PROGRAM_FILE)[METHOD].caches)
    program = LoadedProgram(folder / PROGRAM_FILE, traced)
    return ChunkedDriver(program, layout, kv_bytes, f"executorch {version('executorch')}"), program.write_trace


@functools.cache
def prepare_runtime(layout: HostLayout) -> None:
    """Operators and threads, before a method is loaded: it holds on to the pool, so that this happens once in a process."""
    if layout.own_operators:
        load_library(operators_library())
    if layout.threads:
        portable_lib._unsafe_reset_threadpool(layout.threads)
