"""What the command line prints, and the exit codes that CI jobs branch on.

Snapshots are text files in `snapshots/`; after a change that is meant, rewrite them and read the difference:
    SLM_EXPORT_REFRESH_SNAPSHOTS=1 python -m pytest tests/unit/test_cli.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tiny_checkpoint import tiny_config, write_checkpoint, write_config

from exporter.cli import main
from exporter.doctor import Finding
from exporter.errors import BudgetExceeded, ChildFailed, GateFailed, SlmExportError, ToolchainMissing
from exporter.recipe import Recipe, load_recipe, recipe_json_schema, recipe_names

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SNAPSHOTS = HERE / "snapshots"
REFRESH_VARIABLE = "SLM_EXPORT_REFRESH_SNAPSHOTS"
MODEL = str(REPOSITORY / "examples" / "model")


@dataclass(frozen=True)
class Outcome:
    """Exit code and both streams of one command."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache_folder: Path) -> Run:
    """Runs the console entry point in this process; an exception that it lets through fails the test."""

    def run_main(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["slm-export", *arguments])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        streams = capsys.readouterr()
        return Outcome(int(code or 0), streams.out, streams.err)  # type: ignore[call-overload]

    return run_main


@pytest.fixture
def snapshot(tmp_path: Path) -> Callable[[str, str], None]:
    """Compares a text with `snapshots/<name>.txt`, this machine's paths replaced; writes it when refreshing."""

    def compare(name: str, text: str) -> None:
        text = text.replace(str(tmp_path), "<tmp>").replace(str(REPOSITORY), "<repository>")
        path = SNAPSHOTS / f"{name}.txt"
        if os.environ.get(REFRESH_VARIABLE) == "1":
            SNAPSHOTS.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; write it with {REFRESH_VARIABLE}=1"
        assert text == path.read_text(encoding="utf-8"), f"if this change is meant, set {REFRESH_VARIABLE}=1"

    return compare


Snapshot = Callable[[str, str], None]


def plan_arguments(*arguments: str) -> list[str]:
    return ["plan", "--recipe", "android-npu", "--model", MODEL, *arguments]


# What is printed


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("plan", plan_arguments()),
        ("plan_int4_kv", plan_arguments("--set", "kv_cache.bits=4")),
        (
            "plan_window",
            plan_arguments("--set", "cache.window=32", "--set", "cache.sinks=4", "--set", "cache.chunk=16"),
        ),
        ("recipes", ["recipes"]),
        ("recipes_show", ["recipes", "show", "android-npu"]),
        ("recipes_show_set", ["recipes", "show", "android-npu", "--set", "cache.window=64"]),
    ],
)
def test_output_is_as_in_the_snapshot(run: Run, snapshot: Snapshot, name: str, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    snapshot(name, outcome.out)


@pytest.mark.parametrize(
    ("name", "code", "arguments"),
    [
        ("error_unknown_recipe", 2, ["--recipe", "andriod-npu"]),
        ("error_missing_recipe_file", 2, ["plan", "--recipe", "mine.yaml"]),
        ("error_malformed_set", 2, plan_arguments("--set", "kv_cache.bits")),
        ("error_set_of_unknown_key", 2, plan_arguments("--set", "kv_cache.bit=8")),
        ("error_set_of_two_faults", 2, plan_arguments("--set", "kv_cache.bit=8", "--set", "cache.chunk=0")),
        ("error_missing_model", 2, ["plan", "--recipe", "android-npu", "--model", "no-such-model"]),
        ("error_verify_no_export", 2, ["verify", "no-such-export"]),
        ("refusal", 3, plan_arguments("--set", "weights.scale_format=fp16")),
        ("refusal_chipset", 3, plan_arguments("--set", "target.soc=SM8651")),
        ("refusals", 3, plan_arguments("--set", "kv_cache.bits=16", "--set", "kv_cache.rotation=true")),
    ],
)
def test_errors_are_as_in_the_snapshot(
    run: Run, snapshot: Snapshot, name: str, code: int, arguments: list[str]
) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (code, "")
    snapshot(name, outcome.err)


def test_an_unknown_model_type_is_as_in_the_snapshot(run: Run, snapshot: Snapshot, tmp_path: Path) -> None:
    write_config(tmp_path / "model", tiny_config(model_type="qwen33"))
    outcome = run("plan", "--recipe", "android-npu", "--model", str(tmp_path / "model"))
    assert (outcome.code, outcome.out) == (2, "")
    snapshot("error_unknown_model_type", outcome.err)


def test_an_existing_output_without_force_is_as_in_the_snapshot(run: Run, snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").touch()
    outcome = run("--recipe", "android-npu", "--model", MODEL, "--output", str(tmp_path / "out"))
    assert (outcome.code, outcome.out) == (2, "")
    assert (tmp_path / "out/precious.txt").exists()
    snapshot("error_existing_output", outcome.err)


def test_no_snapshot_is_left_over() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in SNAPSHOTS.iterdir() if f'"{path.stem}"' not in text] == []


def test_an_export_names_the_bundled_example_when_no_model_is_given(run: Run, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short", encoding="utf-8")
    outcome = run(
        "--recipe", "android-npu", "--output", str(tmp_path / "out"), "--calibration", str(tmp_path / "short.txt")
    )
    assert outcome.code == 2
    assert "bundled example" in outcome.out


def test_help_lists_every_command(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    for word in ("plan", "verify", "generate", "doctor", "recipes", "--recipe", "--force", "--set", "--json"):
        assert word in outcome.out


# JSON


def test_the_plan_as_json_holds_the_figures_of_the_plan(run: Run) -> None:
    outcome = run(*plan_arguments("--json"))
    values = json.loads(outcome.out)
    assert outcome.code == 0
    assert values["family"] == "qwen3"
    assert values["obtained"] == "estimated"
    assert f"{values['parameters']:,} parameters" in run(*plan_arguments()).out


def test_a_recipe_as_json_is_the_recipe(run: Run) -> None:
    outcome = run("recipes", "show", "android-npu", "--json", "--set", "seed=3")
    assert Recipe.model_validate(json.loads(outcome.out)) == load_recipe("android-npu", ("seed=3",))


def test_a_recipe_as_yaml_loads_as_the_same_recipe(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    path.write_text(run("recipes", "show", "android-npu").out, encoding="utf-8")
    assert load_recipe(str(path)) == load_recipe("android-npu")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"] == "android-npu"


def test_the_schema_command_prints_the_schema(run: Run) -> None:
    assert json.loads(run("recipes", "schema").out) == recipe_json_schema()


def test_the_list_has_every_recipe_with_its_description(run: Run) -> None:
    lines = run("recipes").out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(load_recipe(line.split()[0]).description in line for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        plan_arguments("--json", "--set", "kv_cache.bits=16"),
        ["--json", "--recipe", "android-npu", "--model", "no-such-model"],
        ["verify", "no-such-export", "--json"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_error_leaves_standard_output_empty_for_machines(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments)
    assert outcome.code in (2, 3)
    assert outcome.out == ""


# Doctor


def findings(target_ready: bool) -> list[Finding]:
    return [
        Finding("python", True, "3.11"),
        Finding("disk", False, "unknown", required=False),
        Finding("target executorch-qnn", target_ready, "ready" if target_ready else "pip install it"),
    ]


def test_doctor_prints_each_finding_and_succeeds_when_all_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.doctor.diagnose", lambda: findings(True))
    outcome = run("doctor")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["ok", "missing", "ok"]


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]], ids=" ".join)
def test_doctor_exits_6_when_something_required_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("exporter.doctor.diagnose", lambda: findings(False))
    outcome = run(*arguments)
    assert "pip install it" in outcome.out
    assert outcome.code == 6


def test_doctor_as_json_is_a_list_of_findings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.doctor.diagnose", lambda: findings(True))
    values = json.loads(run("doctor", "--json").out)
    assert values[0] == {"name": "python", "present": True, "detail": "3.11", "required": True}


def test_the_real_diagnosis_names_interpreter_packages_and_target(run: Run) -> None:
    names = {finding["name"] for finding in json.loads(run("doctor", "--json").out)}
    assert {"python", "memory", "disk", "torch", "safetensors", "tokenizers", "target executorch-qnn"} <= names


# Exit codes


def raising(fault: BaseException) -> Callable[..., None]:
    def raise_it(*_: object) -> None:
        raise fault

    return raise_it


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (GateFailed("kl too large", "no artifact was left in place"), 4),
        (BudgetExceeded("too slow", "raise the budget"), 5),
        (ToolchainMissing("no compiler", "install it"), 6),
        (ChildFailed("compiler crashed", "see the log"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, SlmExportError) else str(value),
)
def test_an_error_sets_the_exit_code_and_prints_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, fault: SlmExportError, code: int
) -> None:
    monkeypatch.setattr("exporter.plan.plan_export", raising(fault))
    outcome = run(*plan_arguments())
    assert outcome == Outcome(code, "", f"slm-export: error: {fault}\n")


def test_an_interrupt_exits_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.plan.plan_export", raising(KeyboardInterrupt()))
    outcome = run(*plan_arguments())
    assert outcome.code == 130
    assert outcome.err.strip().endswith("slm-export: error: interrupted; nothing was left in place")


def test_a_full_disk_is_one_line_with_the_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.plan.plan_export", raising(OSError(28, "No space left on device", "/out/model.pte")))
    outcome = run(*plan_arguments())
    assert outcome.code == 2
    assert outcome.err.startswith("slm-export: error: /out/model.pte: No space left on device; ")


def test_an_error_of_the_program_itself_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.plan.plan_export", raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(*plan_arguments())


def test_a_missing_toolchain_stops_an_export_before_the_weights_are_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import exporter.pipeline  # noqa: F401  so that the import is not what is measured
    from exporter.targets.base import find_target

    write_config(tmp_path / "model", tiny_config())
    monkeypatch.setattr(type(find_target("executorch-qnn")), "toolchain_problem", lambda self: "no compiler; get one")
    outcome = run("-r", "android-npu", "-m", str(tmp_path / "model"), "-o", str(tmp_path / "out"))
    assert outcome.code == 6
    assert "no compiler; get one" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["plan", "--recipe", "andriod-npu"], 2),
        (["plan", "--recipe", "android-npu", "--set", "kv_cache.bits=16"], 3),
        (["recipes"], 0),
        (["--help"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_the_process_itself_exits_with_the_code(arguments: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exporter", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == code


def test_without_arguments_the_help_is_shown_and_the_code_is_2(run: Run) -> None:
    outcome = run()
    assert "--recipe" in outcome.out + outcome.err
    assert outcome.code == 2


# Bad input


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
