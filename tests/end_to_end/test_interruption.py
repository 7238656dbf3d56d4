"""Ctrl-C, kill -9 and a full disk, in every stage: no output, no orphan, one line that says what to do."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.command import FAST, SlmExport

pytest.importorskip("executorch", reason="the qnn extra is not installed")
pytest.importorskip("onnxruntime_qnn", reason="the qnn extra is not installed")

STAGE_BEFORE = {"quantize": "load", "lower": "reference", "verify": "lower"}


def _start_and_wait_for(command: SlmExport, model: Path, output: Path, finished_stage: str) -> subprocess.Popen[str]:
    process = command.start("--recipe", "android-npu", "--model", str(model), *FAST, "--output", str(output))
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().startswith(finished_stage):
            return process
    raise AssertionError(f"{finished_stage} never finished: {process.stderr.read() if process.stderr else ''}")


def _processes_of(command: SlmExport) -> list[int]:
    """Running processes that inherited this command's stage cache."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"SLM_EXPORT_CACHE={command.cache}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _wait_until_gone(command: SlmExport) -> list[int]:
    deadline = time.monotonic() + 10
    while (left := _processes_of(command)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("lower", signal.SIGINT),
        ("verify", signal.SIGKILL),
        pytest.param("quantize", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("verify", signal.SIGINT, marks=pytest.mark.slow),
        pytest.param("quantize", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("lower", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_export_leaves_no_output_and_no_process(
    tmp_path: Path, slm_export: SlmExport, two_layers: Path, stage: str, how: signal.Signals
) -> None:
    command, output = SlmExport(slm_export.repository, tmp_path / "cache"), tmp_path / "place" / "out"
    process = _start_and_wait_for(command, two_layers, output, STAGE_BEFORE[stage])
    time.sleep(2)  # well inside the stage: its child, if any, is running
    os.kill(process.pid, how)
    _, errors = process.communicate(timeout=30)
    assert _wait_until_gone(command) == []
    assert not output.exists()
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted" in errors
        assert len(errors.strip().splitlines()) == 1
        assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("limit_bytes", [1_000_000, 5_000_000], ids=["while-quantizing", "while-lowering"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, slm_export: SlmExport, limit_bytes: int) -> None:
    """A limit on file size stands in for the disk: the system call fails in the same place."""
    command, output = SlmExport(slm_export.repository, tmp_path / "cache"), tmp_path / "place" / "out"
    done = subprocess.run(
        [sys.executable, "-m", "exporter", "--recipe", "android-npu", *FAST, "--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
        env=command.environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "free space" in done.stderr
    assert not output.exists()
    assert list(output.parent.iterdir()) == []
