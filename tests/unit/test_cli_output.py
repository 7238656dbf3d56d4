"""What the command line prints.

Snapshots are text files in `snapshots/`; after a change that is meant, rewrite them and read the difference:
    SLM_EXPORT_REFRESH_SNAPSHOTS=1 python -m pytest tests/unit/test_cli_output.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import MODEL, REPOSITORY, Run, plan_arguments
from tiny_checkpoint import tiny_config, write_config

SNAPSHOTS = Path(__file__).resolve().parent / "snapshots"
REFRESH_VARIABLE = "SLM_EXPORT_REFRESH_SNAPSHOTS"
Snapshot = Callable[[str, str], None]


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


def test_help_is_as_in_the_snapshot(run: Run, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for its first line, which names the program that was started."""
    monkeypatch.setenv("COLUMNS", "100")
    outcome = run("profile", "--help")
    assert (outcome.code, outcome.err) == (0, "")
    snapshot("profile_help", outcome.out.partition("\n")[2])


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
    for word in (
        "plan",
        "verify",
        "inspect",
        "generate",
        "bench",
        "compare",
        "devices",
        "doctor",
        "recipes",
        "--recipe",
        "--force",
        "--set",
        "--json",
    ):
        assert word in outcome.out
