"""The exit codes that CI jobs branch on, and the one line that goes with each error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import REPOSITORY, Outcome, Run, plan_arguments
from tiny_checkpoint import tiny_config, write_config

from exporter.errors import BudgetExceeded, ChildFailed, GateFailed, SlmExportError, ToolchainMissing


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
