"""Outputs of finished stages, keyed by the hash of what they consumed, so that a re-run resumes."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.errors import UsageError
from exporter.folder import OutputFolder

CACHE_VARIABLE = "SLM_EXPORT_CACHE"


def cache_root() -> Path:
    """`$SLM_EXPORT_CACHE`, or slm-export in the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "slm-export"


@functools.cache
def code_digest() -> str:
    """Hash of this package's sources: another version of the code never resumes from this one's stages."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        digest.update(str(source.relative_to(package)).encode() + source.read_bytes())
    return digest.hexdigest()


def content_key(consumed: dict[str, Any]) -> str:
    """Hash of a stage's inputs: any JSON value, order of keys ignored."""
    text = json.dumps({"code": code_digest(), **consumed}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class StageCache:
    """Folders of stage outputs below one root."""

    def __init__(self, root: Path, resume: bool) -> None:
        self.root, self.resume = root, resume
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            raise UsageError(
                f"cannot create {root} ({fault.strerror})", f"set {CACHE_VARIABLE} to a writable folder"
            ) from None

    def logs(self, key: str) -> Path:
        """Folder for the log files of one run; they stay after failures."""
        folder = self.root / "logs" / key
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def produce(self, stage: str, key: str, write: Callable[[Path], None]) -> tuple[Path, bool]:
        """The output folder of a stage and whether it was there already; `write` fills a fresh one."""
        folder = self.root / stage / key
        if self.resume and folder.is_dir():
            return folder, True
        with OutputFolder(folder, force=True) as partial:
            write(partial)
        return folder, False
