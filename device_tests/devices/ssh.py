"""Any machine with a shell, through ssh: a board, a Mac, a phone with Termux."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from device_tests.devices.adb import IMITATED, PUSH_TIME_LIMIT_S
from device_tests.devices.base import DEVICES, SHELL_TIME_LIMIT_S, Device, HostCommand, Placed, RunnerFiles
from device_tests.devices.remote import RemoteFolder
from device_tests.process import Finished, run_program
from exporter.errors import UsageError
from exporter.targets.base import Obtained

FOLDER = ".cache/slm-export-bench"
OPTIONS = (
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=5",
    "-o",
    "ServerAliveInterval=5",
    "-o",
    "ServerAliveCountMax=2",
)
"""No question is asked, and a connection that is gone is noticed within ten seconds."""


@dataclass(frozen=True)
class SshTransport:
    """Shell and push for one host of the user's ssh configuration."""

    name: str
    host: str

    def words(self, script: str) -> list[str]:
        return ["ssh", *OPTIONS, "--", self.host, script]

    def run(self, script: str) -> Finished:
        return run_program(self.words(script), SHELL_TIME_LIMIT_S)

    def push(self, source: Path, target: str) -> Finished:
        """Beside the file first, so that a connection that breaks leaves no half of it under its name."""
        return run_program(self.words(f"cat > {target}.part && mv {target}.part {target}"), PUSH_TIME_LIMIT_S, source)


class SshDevice:
    """`ssh:HOST`."""

    on_this_host = False

    def __init__(self, host: str) -> None:
        self.name = f"ssh:{host}"
        self._host = host
        self._transport = SshTransport(self.name, host)
        self._folder = RemoteFolder(self._transport, FOLDER)

    @cached_property
    def obtained(self) -> Obtained:
        """Asked of the machine itself: a virtual one of another architecture has times of its own."""
        said = self.shell(IMITATED)
        return Obtained.MEASURED if said is not None and "imitated" not in said else Obtained.EMULATED

    def lacks(self) -> str | None:
        if shutil.which("ssh") is None:
            return "there is no ssh; install OpenSSH's client"
        done = self._transport.run("true")
        return None if done.ok else f"{done.reason}; try: ssh {self._host} true"

    def place(self, artifact: Path, names: Sequence[str], runner: RunnerFiles) -> Placed:
        return self._folder.place(artifact, names, runner)

    def write(self, name: str, text: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_text(text, encoding="utf-8")
            return self._folder.write(Path(folder) / name)

    def command(self, words: Sequence[str]) -> HostCommand:
        return HostCommand(tuple(self._transport.words(self._folder.script(words))))

    def shell(self, script: str) -> str | None:
        done = self._transport.run(script)
        return done.output if done.ok else None

    def answers(self) -> bool:
        return self._transport.run("true").ok

    def clean_up(self) -> None:
        self._transport.run(f"rm -f {FOLDER}/*.json")


class SshKind:
    """Hosts are not looked for: the user names one."""

    needs_runner = True

    def device(self, argument: str) -> Device:
        if not argument or argument.startswith("-"):
            raise UsageError("--device ssh: which host?", "write ssh:HOST, as in your ssh configuration")
        return SshDevice(argument)

    def attached(self) -> list[Device]:
        return []


DEVICES.add("ssh", SshKind())
