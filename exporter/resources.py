"""Files shipped with the package: recipes and the bundled example. Found beside the package in a wheel, above it in a checkout."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import UsageError

_PACKAGE = Path(__file__).resolve().parent


def recipe_folder() -> Path:
    """Folder of the shipped recipes."""
    return _shipped("recipes")


def example_folder() -> Path:
    """Folder of the bundled example: `model/`, `calibration.txt`, `evaluation.txt`."""
    return _shipped("examples")


def _shipped(name: str) -> Path:
    for folder in (_PACKAGE / "_shipped" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise UsageError(f"the {name} folder of the installation is missing", "reinstall slm-export")
