"""Output folders that appear whole or not at all: written beside the destination, then renamed into place."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from exporter.errors import UsageError

_PARTIAL, _RETIRED = ".partial", ".replaced"


class OutputFolder:
    """Context manager: `with OutputFolder(out, force) as folder:` write into `folder`; on success it becomes `out`.

    On any exception nothing is left. What killed runs left is put back or removed by the next export to the same
    destination.
    """

    def __init__(self, destination: Path, force: bool) -> None:
        self.destination, self.force = destination, force
        self.folder: Path | None = None

    def check(self) -> None:
        """Raises UsageError when the destination cannot be used; call it before any work."""
        self._make_parent()
        self._put_back()
        if self.destination.exists() and not self.force:
            raise UsageError(
                f"output folder {self.destination} exists", "pass --force to replace it, or another --output"
            )
        if self.destination.exists() and not self.destination.is_dir():
            raise UsageError(f"{self.destination} is a file", "pass another --output")

    def _make_parent(self) -> None:
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
        for leftover in self._leftovers(_PARTIAL) + self._leftovers(_RETIRED):
            shutil.rmtree(leftover, ignore_errors=True)
        prefix = f".{self.destination.name}-{os.getpid()}-"
        self.folder = Path(tempfile.mkdtemp(_PARTIAL, prefix, self.destination.parent))
        return self.folder

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.folder is not None
        retired = self.folder.with_suffix(_RETIRED)
        try:
            if kind is None:
                self._publish(self.folder, retired)
        finally:
            if retired.exists() and not self.destination.exists():  # stopped between the two renames
                retired.rename(self.destination)
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(retired, ignore_errors=True)

    def _publish(self, folder: Path, retired: Path) -> None:
        self.check()  # again: the work took minutes, and somebody else may have written here meanwhile
        folder.chmod(0o755)
        if self.destination.exists():
            self.destination.rename(retired)
        folder.rename(self.destination)

    def _put_back(self) -> None:
        """A run that was killed between its two renames left the only copy of the old output under another name."""
        retired = self._leftovers(_RETIRED)
        if retired and not self.destination.exists():
            retired[0].rename(self.destination)

    def _leftovers(self, suffix: str) -> list[Path]:
        """Folders of runs to this very destination that were killed: their process is gone."""
        ours = re.compile(rf"\.{re.escape(self.destination.name)}-([0-9]{{1,9}})-[a-z0-9_]+{re.escape(suffix)}")
        matches = [(path, ours.fullmatch(path.name)) for path in self.destination.parent.iterdir()]
        return [path for path, match in matches if match and not _is_running(int(match[1]))]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """A second name for the same bytes; a copy where the file system has none to give (another volume, no hard links)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
