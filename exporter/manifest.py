"""manifest.json: what was exported, from what, with which tools; and the integrity check that reads it back."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from exporter.checkpoint.checkpoint import file_sha256
from exporter.errors import GateFailed, UsageError
from exporter.recipe import Recipe, recipe_problems

MANIFEST_FILE, REPORT_FILE = "manifest.json", "report.json"
UNHASHED_FILES = (MANIFEST_FILE, REPORT_FILE, "report.html")
"""Directly in the export: the manifest cannot hold its own hash, and reports hold durations."""
SCHEMA_VERSION = 1
TOOLS = (
    "slm-export",
    "torch",
    "executorch",
    "torchao",
    "onnxruntime-qnn",
    "onnx",
    "onnxruntime",
    "coremltools",
    "tokenizers",
    "safetensors",
    "numpy",
)


def tool_versions() -> dict[str, str]:
    """Versions of the tools that are installed."""
    versions = {"python": platform.python_version()}
    for name in TOOLS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_manifest(folder: Path, recipe: Recipe, target: dict[str, Any], inputs: dict[str, str], created: str) -> None:
    """Hashes every file of `folder` but UNHASHED_FILES. `created` is the only field that two equal exports may not
    share."""
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    outputs = {name: file_sha256(path) for name, path in names.items() if name not in UNHASHED_FILES}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "created": created,
        "recipe": recipe.model_dump(mode="json"),
        "target": target,
        "inputs": inputs,
        "outputs": outputs,
        "tools": tool_versions(),
        "seed": recipe.seed,
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises UsageError when the folder is no export or `outputs` is broken; `exported_recipe` checks the recipe."""
    path = folder / MANIFEST_FILE
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as fault:
        raise UsageError(f"{path}: not readable ({fault})", "pass the output folder of an export") from None
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(f"{path}: not a manifest of schema_version {SCHEMA_VERSION}", "export again with this version")
    outputs = manifest.get("outputs")
    if not isinstance(outputs, dict) or not all(isinstance(digest, str) for digest in outputs.values()):
        raise UsageError(f"{path}: outputs: must map file names to hashes", "export again; do not ship this folder")
    return manifest


def exported_recipe(folder: Path, manifest: dict[str, Any]) -> Recipe:
    """The recipe that made the export in `folder`. Raises UsageError when the manifest holds none that is valid."""
    problems = recipe_problems(manifest.get("recipe"))
    if problems:
        path = folder / MANIFEST_FILE
        raise UsageError(f"{path}: recipe: {' | '.join(problems)}", "export again with this version")
    return Recipe.model_validate(manifest["recipe"])


def check_integrity(folder: Path, manifest: dict[str, Any]) -> int:
    """Compares every output file with its hash; returns how many there are. Raises GateFailed naming what differs."""
    wrong = []
    for name, expected in manifest["outputs"].items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif file_sha256(path) != expected:
            wrong.append(f"{name} was changed")
    if wrong:
        raise GateFailed(f"{folder}: {'; '.join(wrong)}", "export again; do not ship this folder")
    return len(manifest["outputs"])
