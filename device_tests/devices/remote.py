"""Another machine with a shell: what every one has in common. Files go into a folder of it when they differ, and are removed when they are
no longer wanted."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from device_tests.devices.base import HostCommand, Placed, RunnerFiles
from device_tests.process import Finished
from exporter.checkpoint.checkpoint import file_sha256
from exporter.errors import ToolchainMissing
from exporter.targets.base import Obtained

ARTIFACT, RUNNER = "artifact", "runner"
PUSH_TIME_LIMIT_S = 600.0
IMITATED = """
for name in ro.kernel.qemu ro.boot.qemu; do [ "$(getprop $name 2>/dev/null)" = 1 ] && echo imitated; done
for file in /proc/device-tree/model /sys/class/dmi/id/sys_vendor; do
  [ -r $file ] && case $(tr -d '\\0' < $file) in *dummy-virt*|QEMU*) echo imitated;; esac
done
true
"""
"""Android's emulator, a virtual machine, or the loopback device: their times are not a phone's."""


class Transport(Protocol):
    """How commands and files get to the other machine."""

    @property
    def name(self) -> str: ...

    def shell(self, script: str) -> list[str]:
        """The program on this host that runs a shell script there."""

    def run(self, script: str) -> Finished:
        """Runs it, within a time limit."""

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


class RemoteDevice:
    """The part of a `Device` that follows from its transport; `path` is the folder on it."""

    def __init__(self, transport: Transport, path: str) -> None:
        self.name = transport.name
        self._transport, self._folder = transport, RemoteFolder(transport, path)

    @cached_property
    def obtained(self) -> Obtained:
        """Asked of the machine itself, once; one that does not answer is not believed, and a virtual one has times of its own."""
        said = self.shell(IMITATED)
        return Obtained.MEASURED if said is not None and "imitated" not in said else Obtained.EMULATED

    def place(self, artifact: Path, names: Sequence[str], runner: RunnerFiles) -> Placed:
        return self._folder.place(artifact, names, runner)

    def write(self, name: str, text: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_text(text, encoding="utf-8")
            return self._folder.write(Path(folder) / name)

    def command(self, words: Sequence[str]) -> HostCommand:
        return HostCommand(tuple(self._transport.shell(self._folder.script(words))))

    def shell(self, script: str) -> str | None:
        done = self._transport.run(script)
        return done.output if done.ok else None

    def clean_up(self) -> None:
        self._transport.run(f"rm -f {self._folder.path}/*.json")
