"""This machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from device_tests.devices.base import DEVICES, SHELL_TIME_LIMIT_S, Device, HostCommand, Placed, RunnerFiles
from device_tests.process import run_program
from exporter.errors import UsageError
from exporter.targets.base import Obtained

REPOSITORY = Path(__file__).resolve().parents[2]


class LocalDevice:
    """Files stay where they are; a runner is a child process."""

    name = "local"
    obtained = Obtained.MEASURED
    on_this_host = True

    def __init__(self) -> None:
        self._scratch: Path | None = None

    def lacks(self) -> str | None:
        return None

    def place(self, artifact: Path, names: Sequence[str], runner: RunnerFiles) -> Placed:
        folder = str(runner.files[0].resolve().parent) if runner.files else ""
        return Placed(str(artifact.resolve()), folder)

    def write(self, name: str, text: str) -> str:
        self._scratch = self._scratch or Path(tempfile.mkdtemp(prefix="slm-export-bench-"))
        (self._scratch / name).write_text(text, encoding="utf-8")
        return str(self._scratch / name)

    def command(self, words: Sequence[str]) -> HostCommand:
        return HostCommand(tuple(words), {"PYTHONPATH": str(REPOSITORY)})

    def shell(self, script: str) -> str | None:
        done = run_program(["sh", "-c", script], SHELL_TIME_LIMIT_S)
        return done.output if done.ok else None

    def answers(self) -> bool:
        return True

    def clean_up(self) -> None:
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None


class LocalKind:
    """There is exactly one."""

    needs_runner = False

    def device(self, argument: str) -> Device:
        if argument:
            raise UsageError(f"--device local:{argument}: this machine has no other name", "use --device local")
        return LocalDevice()

    def attached(self) -> list[Device]:
        return [LocalDevice()]


DEVICES.add("local", LocalKind())
