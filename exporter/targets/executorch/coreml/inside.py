"""A package wherever it lies: as a folder, or inside an ExecuTorch program. Imports no library until a program is opened."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.errors import ToolchainMissing, UsageError
from exporter.targets.executorch.coreml.names import PROGRAM_SUFFIX


def holds_package(path: Path) -> bool:
    """Whether `path` is a program by its name."""
    return path.suffix == PROGRAM_SUFFIX


@contextmanager
def package_at(path: Path) -> Iterator[Path]:
    """The package that lies in a .pte, until the context ends; any other path as it is.

    Raises UsageError when there is no such file, ToolchainMissing without executorch, GateFailed as `payload.extract` does.
    """
    if not holds_package(path):
        yield path
        return
    if not path.is_file():
        raise UsageError(f"{path}: {'not a file' if path.exists() else 'does not exist'}", "pass an ExecuTorch program")
    if importlib.util.find_spec("executorch") is None:
        raise ToolchainMissing(f"{path}: executorch is not installed", "pip install 'slm-export[executorch]'")
    from exporter.targets.executorch.coreml.payload import extract

    with tempfile.TemporaryDirectory() as scratch:
        yield extract(path, Path(scratch))
