"""Bad input of every kind is one line, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import MODEL, Run, plan_arguments
from tiny_checkpoint import tiny_config, write_checkpoint, write_config


def export_arguments(*arguments: str) -> list[str]:
    return ["--recipe", "android-npu", "--output", "out", *arguments]


BAD_USAGE = [
    ["--bogus"],
    ["frobnicate"],
    ["plan"],
    ["plan", "--recipe"],
    ["plan", "--recipe", ""],
    ["plan", "--recipe", "x" * 300],
    ["plan", "--recipe", "."],
    ["plan", "--recipe", "folder.yaml"],
    ["plan", "--recipe", "empty.txt"],
    ["plan", "--recipe", "binary.yaml"],
    ["plan", "--recipe", "list.yaml"],
    ["plan", "--recipe", "cycle.yaml"],
    ["plan", "--recipe", "date.yaml"],
    plan_arguments("--set"),
    plan_arguments("--set", ""),
    plan_arguments("--set", "=3"),
    plan_arguments("--set", "name.deeper=3"),
    plan_arguments("--set", "kv_cache.bits=[1"),
    plan_arguments("--set", "seed=2001-99-99"),
    plan_arguments("--set", "target.kind=onxx"),
    plan_arguments("surplus"),
    ["plan", "--recipe", "android-npu", "--model", ""],
    ["plan", "--recipe", "android-npu", "--model", "empty.txt"],
    ["plan", "--recipe", "android-npu", "--model", "folder.yaml"],
    ["plan", "--recipe", "android-npu", "--model", "badconfig"],
    ["plan", "--recipe", "android-npu", "--model", "badtype"],
    ["recipes", "show"],
    ["recipes", "show", "andriod-npu"],
    ["recipes", "show", "android-npu", "--set", "sed=1"],
    ["recipes", "frobnicate"],
    ["verify"],
    ["verify", "no-such-export"],
    ["verify", "empty.txt"],
    ["verify", "hollow"],
    ["verify", "hollow_recipe"],
    ["verify", "bad_recipe"],
    ["generate", "no-such-export", "--prompt", "x"],
    ["generate", "bad_recipe", "--prompt", "x"],
    ["generate", "bad_recipe"],
    ["generate", "no-such-export", "--prompt", "x", "--max-tokens", "0"],
    ["generate", "no-such-export", "--prompt", "x", "--max-tokens", "many"],
    ["generate", "no-such-export", "--prompt", "x", "--temperature", "-1"],
    ["generate", "no-such-export", "--prompt", "x", "--temperature", "nan"],
    ["generate", "no-such-export", "--prompt", "x", "--top-p", "0"],
    ["generate", "no-such-export", "--prompt", "x", "--top-k", "-1"],
    export_arguments("--model", "no-such-model"),
    export_arguments("--model", "model", "--adapter", "no-such-adapter"),
    export_arguments("--model", "model", "--calibration", "no-such.txt"),
    export_arguments("--model", "model", "--calibration", "empty.txt"),
    export_arguments("--model", "model", "--calibration", "binary.yaml"),
    export_arguments("--model", "model", "--calibration", "folder.yaml"),
    export_arguments("--model", "model", "--evaluation", "no-such.txt"),
    ["--recipe", "android-npu", "--model", "model", "--output", "empty.txt"],
    ["--recipe", "android-npu", "--model", "model", "--output", "empty.txt", "--force"],
    ["--recipe", "android-npu", "--model", "model", "--output", "empty.txt/out"],
    ["--recipe", "android-npu", "--model", "model", "--output", "/proc/none/out"],
]


@pytest.fixture
def bad_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder full of what can be wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "list.yaml").write_text("- a", encoding="utf-8")
    (tmp_path / "cycle.yaml").write_text("extends: cycle", encoding="utf-8")
    (tmp_path / "date.yaml").write_text("name: 2001-99-99", encoding="utf-8")
    write_config(tmp_path / "badconfig", tiny_config(num_key_value_heads=3))
    write_config(tmp_path / "badtype", tiny_config(model_type=["llama"]))
    write_checkpoint(tmp_path / "model")
    for name, values in {
        "hollow": {"schema_version": 1},
        "hollow_recipe": {"schema_version": 1, "outputs": {}},
        "bad_recipe": {"schema_version": 1, "outputs": {}, "recipe": {"sed": 1}},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("arguments", BAD_USAGE, ids=lambda arguments: " ".join(arguments).replace(MODEL, "M")[:70])
def test_bad_input_is_one_line_and_exit_code_2(run: Run, bad_inputs: Path, arguments: list[str]) -> None:
    before = sorted(path.name for path in bad_inputs.iterdir())
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("slm-export: error: ")
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    assert "free space" not in outcome.err
    left = {path.name for path in bad_inputs.iterdir()} - {"cache"}
    assert sorted(left) == [name for name in before if name != "cache"]
