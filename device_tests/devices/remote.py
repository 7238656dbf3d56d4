"""Files in a folder of another machine: pushed when they differ, removed when they are no longer wanted."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from device_tests.devices.base import Placed, RunnerFiles
from device_tests.process import Finished
from exporter.checkpoint.checkpoint import file_sha256
from exporter.errors import ToolchainMissing

ARTIFACT, RUNNER = "artifact", "runner"


class Transport(Protocol):
    """How commands and files get to the other machine."""

    @property
    def name(self) -> str: ...

    def run(self, script: str) -> Finished:
        """Runs a shell script there."""

    def push(self, source: Path, target: str) -> Finished:
        """Copies one file there; its folder exists."""


@dataclass(frozen=True)
class RemoteFolder:
    """`path` is a folder on the other machine, for this program alone."""

    transport: Transport
    path: str

    def place(self, artifact: Path, names: Sequence[str], runner: RunnerFiles) -> Placed:
        """Compares hashes, so that a large model crosses the cable once. Raises ToolchainMissing when the machine does not answer."""
        wanted = {f"{ARTIFACT}/{name}": artifact / name for name in names}
        wanted |= {f"{RUNNER}/{file.name}": file for file in runner.files}
        held = self._held()
        for name, source in wanted.items():
            if held.get(name) != file_sha256(source):
                self._demand(self.transport.push(source, f"{self.path}/{name}"), f"pushing {source.name}")
        stale = " ".join(shlex.quote(f"{self.path}/{name}") for name in held.keys() - wanted.keys())
        self._demand(
            self.transport.run(
                f"{'rm -f ' + stale + '; ' if stale else ''}chmod 755 {self.path}/{RUNNER}/* 2>/dev/null; true"
            ),
            "preparing files",
        )
        return Placed(ARTIFACT, f"./{RUNNER}")

    def write(self, source: Path) -> str:
        self._demand(self.transport.push(source, f"{self.path}/{source.name}"), f"pushing {source.name}")
        return source.name

    def script(self, words: Sequence[str]) -> str:
        """Starts a program in the folder; it takes the shell's place, so that its end and its standard input are the shell's."""
        return f"cd {self.path} && exec {shlex.join(words)}"

    def _held(self) -> Mapping[str, str]:
        folders = f"{ARTIFACT} {RUNNER}"
        made = " ".join(f"{self.path}/{name}" for name in folders.split())
        listing = self._demand(
            self.transport.run(f"mkdir -p {made} && cd {self.path} && find {folders} -type f -exec sha256sum {{}} +"),
            "listing files",
        )
        lines = [line.split(maxsplit=1) for line in listing.splitlines()]
        return {line[1]: line[0] for line in lines if len(line) == 2}

    def _demand(self, done: Finished, doing: str) -> str:
        if not done.ok:
            raise ToolchainMissing(
                f"{self.transport.name}, while {doing}: {done.reason}", "attach it again; see: slm-export devices"
            )
        return done.output
