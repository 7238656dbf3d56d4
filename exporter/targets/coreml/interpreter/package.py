"""A .mlpackage folder: Manifest.json, one model file, and weight files beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from exporter.errors import GateFailed, UsageError
from exporter.targets.coreml.interpreter.program import BlobReference, Program, parse_program
from exporter.targets.coreml.interpreter.storage import WeightFile

SUFFIX = ".mlpackage"
MANIFEST_FILE = "Manifest.json"
ROOT_KEY, ENTRIES_KEY = "rootModelIdentifier", "itemInfoEntries"
DATA_FOLDER = "Data"
MODEL_FOLDER_PREFIX = "@model_path/"
NOT_A_PACKAGE_STEP = "pass the .mlpackage folder of an ML Program"


def is_package(folder: Path) -> bool:
    """Whether `folder` means to be a Core ML package: by its name, or by a manifest that names a root model."""
    return folder.name.endswith(SUFFIX) or _manifest(folder) is not None


def _manifest(folder: Path) -> dict | None:
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and ROOT_KEY in manifest else None


@dataclass(frozen=True)
class Package:
    """An opened package: its program, and its weight files by the names that the program uses."""

    path: Path
    model_file: Path
    program: Program
    _weights: dict[str, WeightFile] = field(default_factory=dict, compare=False)

    @staticmethod
    def open(path: Path | str) -> Package:
        """Reads the program. Raises UsageError when `path` is no package of an ML Program, GateFailed when a file of it is missing or
        broken, ToolchainMissing when coremltools is not installed."""
        path = Path(path)
        model_file = _model_file(path)
        try:
            data = model_file.read_bytes()
        except OSError as fault:
            raise GateFailed(f"{model_file}: not readable ({fault.strerror})", "copy the whole package again") from None
        return Package(path, model_file, parse_program(data, str(model_file)))

    def weight_file_sizes(self) -> dict[str, int]:
        """Bytes of every file of the package but the program and the manifest, by path in the package."""
        others = {self.model_file, self.path / MANIFEST_FILE}
        files = (file for file in sorted(self.path.rglob("*")) if file.is_file() and file not in others)
        return {file.relative_to(self.path).as_posix(): file.stat().st_size for file in files}

    def weight_file(self, reference: BlobReference) -> WeightFile:
        if reference.file not in self._weights:
            path = self.model_file.parent / reference.file.removeprefix(MODEL_FOLDER_PREFIX)
            self._weights[reference.file] = WeightFile(_inside(self.path, path))
        return self._weights[reference.file]


def _model_file(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"{path}: {'not a folder' if path.exists() else 'does not exist'}", NOT_A_PACKAGE_STEP)
    manifest = _manifest(path)
    if manifest is None:
        raise UsageError(
            f"{path / MANIFEST_FILE}: missing, or not the manifest of a Core ML package", NOT_A_PACKAGE_STEP
        )
    entries = manifest.get(ENTRIES_KEY)
    entry = entries.get(manifest[ROOT_KEY]) if isinstance(entries, dict) else None
    if not isinstance(entry, dict) or "path" not in entry:
        raise GateFailed(f"{path / MANIFEST_FILE}: names no root model", "copy the whole package again")
    return _inside(path, path / DATA_FOLDER / str(entry["path"]))


def _inside(folder: Path, file: Path) -> Path:
    """`file`, which a package names, and which must not lead out of it."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise GateFailed(f"{folder}: refers to {file}, which is outside of it", "do not use this package")
    return file
