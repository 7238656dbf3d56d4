"""Output folders that appear whole or not at all: written beside the destination, then renamed into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from exporter.errors import UsageError

_PREFIX, _SUFFIX = ".", ".partial"


class OutputFolder:
    """Context manager: `with OutputFolder(out, force) as folder:` write into `folder`; on success it becomes `out`.

    On any exception nothing is left. Leftovers of killed runs are removed by the next export to the same destination.
    """

    def __init__(self, destination: Path, force: bool) -> None:
        self.destination, self.force = destination, force
        self.folder: Path | None = None

    def check(self) -> None:
        """Raises UsageError when the destination cannot be used; call it before any work."""
        if self.destination.exists() and not self.force:
            raise UsageError(
                f"output folder {self.destination} exists", "pass --force to replace it, or another --output"
            )
        if self.destination.exists() and not self.destination.is_dir():
            raise UsageError(f"{self.destination} is a file", "pass another --output")
        try:
            self.destination.parent.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise UsageError(
                f"cannot create {self.destination.parent} ({fault.strerror})", "pass another --output"
            ) from None
        if not os.access(self.destination.parent, os.W_OK):
            raise UsageError(f"{self.destination.parent} is not writable", "pass another --output")

    def __enter__(self) -> Path:
        self.check()
        self._remove_leftovers()
        parent = self.destination.parent
        self.folder = Path(tempfile.mkdtemp(_SUFFIX, f"{_PREFIX}{self.destination.name}-{os.getpid()}-", parent))
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.folder is not None
        if kind is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        self.folder.chmod(0o755)
        if self.destination.exists():
            retired = self.folder.with_suffix(".replaced")
            self.destination.rename(retired)
            self.folder.rename(self.destination)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            self.folder.rename(self.destination)

    def _remove_leftovers(self) -> None:
        """Partial folders of runs that were killed: their process is gone."""
        for leftover in self.destination.parent.glob(f"{_PREFIX}{self.destination.name}-*{_SUFFIX}"):
            owner = leftover.name.removeprefix(f"{_PREFIX}{self.destination.name}-").split("-")[0]
            if owner.isdigit() and not _is_running(int(owner)):
                shutil.rmtree(leftover, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
