"""What a device is: a place to put files, a way to start a runner there, and a shell to ask it how it is."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from exporter.registry import Registry
from exporter.targets.base import Obtained

SHELL_TIME_LIMIT_S = 10.0


@dataclass(frozen=True)
class RunnerFiles:
    """What a runner consists of: words that start it, and the files that it needs beside it. `$RUNNER` in a word stands for the folder
    that the files are put into."""

    words: tuple[str, ...]
    files: tuple[Path, ...] = ()
    driver: str = ""
    """`module:function` of a Python driver, for the runner that needs one."""


@dataclass(frozen=True)
class Placed:
    """Where things are on the device."""

    artifact: str
    runner: str


@dataclass(frozen=True)
class HostCommand:
    """A program to start on this host so that the runner runs on the device."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class Device(Protocol):
    """One device, attached or not. Methods raise ToolchainMissing when it does not answer; `name` is as on the command line."""

    @property
    def name(self) -> str: ...

    @property
    def obtained(self) -> Obtained:
        """MEASURED where a duration is the device's own; anything else is never shown as its latency."""

    @property
    def on_this_host(self) -> bool:
        """Whether it shares this machine's processor, so that it must not be measured beside another one that does."""

    def lacks(self) -> str | None:
        """None when it is ready, else what is missing and how to get it."""

    def place(self, artifact: Path, names: Sequence[str], runner: RunnerFiles) -> Placed:
        """Puts the named files of the artifact and the runner's onto the device, those that changed."""

    def write(self, name: str, text: str) -> str:
        """Puts a small file there; returns its path on the device."""

    def command(self, words: Sequence[str]) -> HostCommand:
        """How this host starts a program on the device, with standard input and output connected."""

    def shell(self, script: str) -> str | None:
        """What a script prints there, or None when the device does not answer."""

    def answers(self) -> bool:
        """Whether it is still there."""

    def clean_up(self) -> None:
        """Removes what a measurement leaves: requests and processes, not the pushed artifact, which the next run compares with."""


class DeviceKind(Protocol):
    """Makes devices from what follows the kind on the command line, and finds those that are attached."""

    def device(self, argument: str) -> Device:
        """Of `KIND:ARGUMENT`; the argument may be empty. Raises UsageError when it must not be."""

    def attached(self) -> list[Device]:
        """Those that this kind can find by itself, ready or not."""

    needs_runner: bool
    """Whether it cannot run the Python driver."""


DEVICES: Registry[DeviceKind] = Registry("device")


def device_kinds() -> Registry[DeviceKind]:
    """Every kind: each module of this package registers itself when it is imported."""
    package = sys.modules[__package__]
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(found.name)
    return DEVICES


def find_device(text: str) -> tuple[DeviceKind, Device]:
    """Of `KIND` or `KIND:ARGUMENT`. Raises UsageError naming the nearest kind."""
    name, _, argument = text.partition(":")
    kind = device_kinds().get(name)
    return kind, kind.device(argument)
