"""The workflows of examples/ci: every step that is a command runs, in order, as the CI systems run them; and the pytest fixtures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.end_to_end.command import FAST, SlmExport

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
EXAMPLES = REPOSITORY / "examples" / "ci"


def github_steps() -> Iterator[str]:
    """Commands of the steps, but the one that installs this very program."""
    (job,) = yaml.safe_load((EXAMPLES / "github-actions.yaml").read_text(encoding="utf-8"))["jobs"].values()
    named = {step["name"]: step["run"] for step in job["steps"] if "run" in step}
    assert named.pop("Install") == "pip install 'slm-export[onnx]'"
    yield from named.values()


def gitlab_steps() -> Iterator[str]:
    job = yaml.safe_load((EXAMPLES / "gitlab-ci.yaml").read_text(encoding="utf-8"))["export"]
    assert job["before_script"] == ["pip install 'slm-export[onnx]'"]
    yield from job["script"]


class Workspace:
    """A checkout of a user's repository, with the program on the path."""

    def __init__(self, folder: Path, slm_export: SlmExport) -> None:
        self.folder, self._slm_export = folder, slm_export
        (folder / "bin").mkdir(parents=True)
        program = folder / "bin" / "slm-export"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m exporter "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        shutil.copy(EXAMPLES / "budgets.yaml", folder)

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """As both systems do: bash that stops at the first failure."""
        environment = self._slm_export.environment() | {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "RECIPE": "onnx-cpu-small",
            "GITHUB_STEP_SUMMARY": str(self.folder / "step-summary.md"),
            "CI_COMMIT_BRANCH": "main",
            "CI_DEFAULT_BRANCH": "main",
        }
        command = ["bash", "-e", "-o", "pipefail", "-c", script]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=600
        )


def test_every_step_of_the_github_workflow_runs_and_a_broken_budget_fails_it(
    slm_export: SlmExport, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "checkout", slm_export)
    for script in github_steps():
        done = workspace.run(script)
        assert done.returncode == 0, f"{script}: {done.stderr}"
    assert "0 of 5 budgets broken" in (workspace.folder / "step-summary.md").read_text(encoding="utf-8")
    assert len(ElementTree.parse(workspace.folder / "junit.xml").getroot()) == 5
    assert (workspace.folder / "baseline/report.json").is_file()
    (workspace.folder / "budgets.yaml").write_text("budgets: [artifact.bytes <= 1000]\n", encoding="utf-8")
    compare = next(script for script in github_steps() if "compare" in script)
    assert workspace.run(compare).returncode == 5


@pytest.mark.slow
def test_every_step_of_the_gitlab_workflow_runs(slm_export: SlmExport, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "checkout", slm_export)
    done = workspace.run("\n".join(gitlab_steps()))
    assert done.returncode == 0, done.stderr
    assert (workspace.folder / "baseline/report.json").is_file()


def test_both_workflows_run_the_same_commands() -> None:
    def commands(steps: Iterator[str]) -> list[str]:
        lines = [line.strip() for step in steps for line in step.splitlines()]
        return [line for line in lines if line.startswith("slm-export")]

    assert commands(github_steps()) == commands(gitlab_steps())


def test_the_fixtures_measure_present_devices_and_skip_absent_ones(
    slm_export: SlmExport, exported_once: Callable[..., Path], tmp_path: Path
) -> None:
    output = shutil.copytree(exported_once("--recipe", "onnx-cpu-small", *FAST), tmp_path / "out")
    command = [sys.executable, "-m", "pytest", "-p", "device_tests.plugin", "-p", "no:cacheprovider", "-v", "-rs"]
    command += [
        "--slm-export",
        str(output),
        "--slm-repetitions",
        "1",
        "--slm-device",
        "local",
        "--slm-device",
        "iphone",
    ]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-c", os.devnull, str(EXAMPLES / "test_latency.py")],
        env=slm_export.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "test_decode_budget[local] PASSED" in done.stdout, done.stdout + done.stderr
    assert "test_decode_budget[iphone] SKIPPED" in done.stdout
    assert "there is no xcrun" in done.stdout
