"""Any machine with a shell, through ssh: a board, a Mac, a phone with Termux."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from device_tests.devices.base import DEVICES, SHELL_TIME_LIMIT_S, Device
from device_tests.devices.remote import PUSH_TIME_LIMIT_S, RemoteDevice
from device_tests.process import Finished, run_program
from exporter.errors import UsageError

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

    def shell(self, script: str) -> list[str]:
        return ["ssh", *OPTIONS, "--", self.host, script]

    def run(self, script: str) -> Finished:
        return run_program(self.shell(script), SHELL_TIME_LIMIT_S)

    def push(self, source: Path, target: str) -> Finished:
        """Beside the file first, so that a connection that breaks leaves no half of it under its name."""
        return run_program(self.shell(f"cat > {target}.part && mv {target}.part {target}"), PUSH_TIME_LIMIT_S, source)


class SshDevice(RemoteDevice):
    """`ssh:HOST`."""

    on_this_host = False

    def __init__(self, host: str) -> None:
        self._host = host
        super().__init__(SshTransport(f"ssh:{host}", host), FOLDER)

    def lacks(self) -> str | None:
        if shutil.which("ssh") is None:
            return "there is no ssh; install OpenSSH's client"
        done = self._transport.run("true")
        return None if done.ok else f"{done.reason}; try: ssh {self._host} true"

    def answers(self) -> bool:
        return self._transport.run("true").ok


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
