"""A plan needs config and recipe alone: no weights, no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_checkpoint import tiny_config, write_config
from tiny_plans import plan_of, recipe

from exporter.errors import CheckpointError, PlanRefused, UsageError
from exporter.plan import plan_export

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_plan_needs_the_config_alone(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config())
    assert plan_export(tmp_path, recipe()) == plan_of(tiny_config())


def test_a_plan_of_a_broken_config_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        plan_export(tmp_path, recipe())


def test_an_unknown_target_gets_the_nearest(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config())
    with pytest.raises(UsageError) as caught:
        plan_export(tmp_path, recipe("target.kind=executorch-qnm"))
    assert "did you mean 'executorch-qnn'?" in str(caught.value)


def test_a_refusal_comes_from_config_and_recipe_alone(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config("smollm3", no_rope_layers=[0, 0]))
    with pytest.raises(PlanRefused):
        plan_export(tmp_path, recipe())


def test_the_plan_command_imports_neither_torch_nor_any_other_heavy_package() -> None:
    program = (
        "import sys; sys.argv[1:] = ['plan', '--recipe', 'android-npu']\n"
        "from exporter.cli import main\n"
        "main()\n"
        "heavy = {'torch', 'executorch', 'torchao', 'transformers', 'tokenizers', 'safetensors', 'onnx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    *plan, imported = done.stdout.splitlines()
    assert plan[0].startswith("model ")
    assert imported == "[]"
