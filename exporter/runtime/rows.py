"""Logits of many tokens in a file: a large vocabulary times a thousand tokens does not belong in memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


class RowFile:
    """Writes float32 rows [n, V] one piece after another. Context manager: the file is readable once it is left."""

    def __init__(self, path: Path) -> None:
        self.stream = path.open("wb")
        self.shape = (0, 0)
        self._start()

    def append(self, rows: np.ndarray) -> None:
        self.shape = (self.shape[0] + rows.shape[0], rows.shape[1])
        rows.astype(np.float32, copy=False).tofile(self.stream)

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.seek(0)
        self._start()
        self.stream.close()

    def _start(self) -> None:
        """The header of an .npy file has one length for any shape up to a wide margin, so it can be written again at the end."""
        header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.stream, header)


def map_rows(path: Path) -> torch.Tensor:
    """float32 [tokens, V], read from the file as it is used."""
    import torch  # seconds and 200 MB that a process which only runs an artifact is spared

    return torch.from_numpy(np.load(path, mmap_mode="c"))
