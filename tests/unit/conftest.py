"""Shared fixtures: recipe files, the command line, and one thread, since a second only waits on tiny tensors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import Outcome, Run
from recipe_files import Write

from exporter.cli import main


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes `<name>.yaml` and returns its path as text."""

    def write_recipe(text: str, name: str = "mine") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_recipe


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
