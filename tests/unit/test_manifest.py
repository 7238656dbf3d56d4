"""manifest.json: what it records, and that it catches every change of what ships."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.checkpoint.checkpoint import file_sha256
from exporter.errors import ExitCode, GateFailed, UsageError
from exporter.manifest import (
    MANIFEST_FILE,
    check_integrity,
    exported_recipe,
    read_manifest,
    tool_versions,
    write_manifest,
)
from exporter.recipe import Recipe

CREATED = "2030-01-02T03:04:05+00:00"
SHIPPED = ["host.json", "model.pte", "verification/weights.safetensors"]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder that looks like an export, manifest included."""
    folder = tmp_path / "out"
    (folder / "verification").mkdir(parents=True)
    for number, name in enumerate(SHIPPED):
        (folder / name).write_bytes(bytes([number]) * 1000)
    (folder / "report.json").write_text("{}", encoding="utf-8")
    (folder / "report.html").write_text("<html>", encoding="utf-8")
    write(folder)
    return folder


def write(folder: Path, created: str = CREATED) -> None:
    write_manifest(folder, Recipe(name="mine", seed=7), {"soc": "SM8650"}, {"config.json": "abc"}, created)


def check(folder: Path) -> int:
    return check_integrity(folder, read_manifest(folder))


def failure(folder: Path) -> str:
    with pytest.raises(GateFailed) as caught:
        check(folder)
    assert caught.value.exit_code == ExitCode.GATE_FAILED
    assert str(folder) in caught.value.message
    return caught.value.message


def test_every_shipped_file_is_recorded_with_its_hash(export: Path) -> None:
    outputs = read_manifest(export)["outputs"]
    assert sorted(outputs) == SHIPPED
    assert all(outputs[name] == hashlib.sha256((export / name).read_bytes()).hexdigest() for name in SHIPPED)


def test_recipe_target_inputs_seed_and_tools_are_recorded(export: Path) -> None:
    manifest = read_manifest(export)
    assert Recipe.model_validate(manifest["recipe"]) == Recipe(name="mine", seed=7)
    assert manifest["target"] == {"soc": "SM8650"}
    assert manifest["inputs"] == {"config.json": "abc"}
    assert (manifest["schema_version"], manifest["seed"], manifest["created"]) == (1, 7, CREATED)
    assert manifest["tools"]["torch"] == importlib.metadata.version("torch")


def test_two_equal_exports_differ_in_the_time_alone(export: Path) -> None:
    first = (export / MANIFEST_FILE).read_bytes()
    write(export)
    assert (export / MANIFEST_FILE).read_bytes() == first
    write(export, "2031-01-01T00:00:00+00:00")
    changed = read_manifest(export)
    assert {**changed, "created": CREATED} == json.loads(first)


def test_tools_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "torchao":
            raise importlib.metadata.PackageNotFoundError(name)
        return known("torch") if name == "torch" else "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    versions = tool_versions()
    assert "torchao" not in versions
    assert versions["torch"] == known("torch")
    assert versions["python"].startswith("3.")


def test_an_untouched_export_passes_and_its_files_are_counted(export: Path) -> None:
    assert check(export) == len(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("position", [0, 500, 999])
def test_one_changed_byte_is_caught(export: Path, name: str, position: int) -> None:
    content = bytearray((export / name).read_bytes())
    content[position] ^= 1
    (export / name).write_bytes(content)
    assert f"{name} was changed" in failure(export)


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\0", lambda content: b""])
def test_a_changed_length_is_caught(export: Path, change: Callable[[bytes], bytes]) -> None:
    path = export / "model.pte"
    path.write_bytes(change(path.read_bytes()))
    assert "model.pte was changed" in failure(export)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_missing_file_is_caught(export: Path, name: str) -> None:
    (export / name).unlink()
    assert f"{name} is missing" in failure(export)


def test_every_fault_is_named_at_once(export: Path) -> None:
    (export / "host.json").unlink()
    (export / "model.pte").write_bytes(b"")
    message = failure(export)
    assert "host.json is missing" in message
    assert "model.pte was changed" in message
    assert "weights.safetensors" not in message


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_a_changed_or_missing_report_does_not_matter(export: Path, name: str) -> None:
    (export / name).write_text("changed", encoding="utf-8")
    assert check(export) == len(SHIPPED)
    (export / name).unlink()
    assert check(export) == len(SHIPPED)


@pytest.mark.parametrize("name", ["report.json", "manifest.json"])
def test_a_file_below_that_is_named_like_a_report_is_recorded(export: Path, name: str) -> None:
    (export / "verification" / name).write_text("{}", encoding="utf-8")
    write(export)
    assert f"verification/{name}" in read_manifest(export)["outputs"]


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"schema_version": 2}', b'{"schema_version": "1"}'],
)
def test_a_folder_without_a_readable_manifest_is_no_export(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path / MANIFEST_FILE) in caught.value.message
    assert caught.value.next_step


@pytest.mark.parametrize("outputs", ["absent", None, [], {"model.pte": 3}])
def test_a_manifest_with_broken_outputs_is_an_error_of_ours(export: Path, outputs: Any) -> None:
    values = read_manifest(export)
    values["outputs"] = outputs
    if outputs == "absent":
        del values["outputs"]
    (export / MANIFEST_FILE).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises((UsageError, GateFailed)):
        check(export)


@pytest.mark.parametrize("recipe", ["absent", None, [], {}, {"name": "mine", "sed": 1}, {"name": "mine", "seed": "x"}])
def test_a_manifest_without_a_valid_recipe_is_no_export(export: Path, recipe: Any) -> None:
    values = {**read_manifest(export), "recipe": recipe}
    if recipe == "absent":
        del values["recipe"]
    with pytest.raises(UsageError) as caught:
        exported_recipe(export, values)
    assert f"{export / MANIFEST_FILE}: recipe: " in caught.value.message
    assert caught.value.next_step
    assert "\n" not in str(caught.value)


def test_the_recipe_of_an_export_is_the_one_that_made_it(export: Path) -> None:
    assert exported_recipe(export, read_manifest(export)) == Recipe(name="mine", seed=7)


def test_file_sha256_hashes_files_larger_than_its_buffer(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8200
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
