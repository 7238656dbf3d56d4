"""The command under test, with one stage cache for the whole session, and what the files of this folder share."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import REPOSITORY
from tests.end_to_end.command import SlmExport, read_json


@pytest.fixture(scope="session")
def slm_export(tmp_path_factory: pytest.TempPathFactory) -> SlmExport:
    return SlmExport(REPOSITORY, tmp_path_factory.mktemp("stage-cache"))


@pytest.fixture(scope="session")
def exported_once(slm_export: SlmExport, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of an export with some arguments, made when they are first met. Who writes into it takes a copy."""

    @functools.cache
    def export(*arguments: str) -> Path:
        output = tmp_path_factory.mktemp("exported") / "out"
        slm_export.succeed(*arguments, "--output", str(output))
        return output

    return export


@pytest.fixture
def report(exported: Path) -> dict[str, Any]:
    """Of the export that a file's tests share."""
    return read_json(exported, "report")


@pytest.fixture(scope="session")
def two_layers(example_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the bundled model's layers, one with a window and one without: lowering takes its time by the layer."""
    folder, kept = tmp_path_factory.mktemp("two-layers") / "model", (1, 2)
    shutil.copytree(example_model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"num_hidden_layers": len(kept), "layer_types": [config["layer_types"][index] for index in kept]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if layer is None:
            tensors[name] = tensor
        elif int(layer[1]) in kept:
            tensors[f"model.layers.{kept.index(int(layer[1]))}.{layer[2]}"] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
