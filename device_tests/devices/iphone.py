"""An iPhone through a Mac: an app that holds the runner is installed by the user, and `xcrun devicectl` copies files and starts it.

The commands are built and their output is parsed here; they were tested with recorded output alone, since no Mac was at hand.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from device_tests.devices.base import DEVICES, Device, HostCommand, Placed, RunnerFiles
from device_tests.process import Finished, run_program
from exporter.errors import ToolchainMissing
from exporter.targets.base import Obtained

APP_VARIABLE = "SLM_EXPORT_IPHONE_APP"
PUSH_TIME_LIMIT_S = 600.0
LIST_TIME_LIMIT_S = 30.0


@dataclass(frozen=True)
class Phone:
    """One entry of `devicectl list devices`."""

    identifier: str
    model: str
    connected: bool


def parse_devices(text: str) -> list[Phone]:
    """Of the JSON that devicectl writes. Raises ToolchainMissing when it is none."""
    try:
        entries = json.loads(text)["result"]["devices"]
        return [
            Phone(
                entry["identifier"],
                entry["hardwareProperties"]["marketingName"],
                entry["connectionProperties"].get("tunnelState") == "connected",
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError) as fault:
        raise ToolchainMissing(f"devicectl: its list of devices is not readable ({fault})", "update Xcode") from None


def list_phones() -> list[Phone]:
    """Those that this Mac knows; none where there is no Xcode."""
    if shutil.which("xcrun") is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "devices.json"
        done = run_program(["xcrun", "devicectl", "list", "devices", "--json-output", str(path)], LIST_TIME_LIMIT_S)
        return parse_devices(path.read_text(encoding="utf-8")) if done.ok and path.is_file() else []


class IphoneDevice:
    """`iphone` or `iphone:IDENTIFIER`. The app's own folder is the work folder; the app takes the words of the runner as arguments."""

    obtained = Obtained.MEASURED
    on_this_host = False

    def __init__(self, identifier: str) -> None:
        self.name = f"iphone:{identifier}" if identifier else "iphone"
        self._identifier = identifier
        self._app = os.environ.get(APP_VARIABLE, "")

    def lacks(self) -> str | None:
        if shutil.which("xcrun") is None:
            return "there is no xcrun; an iPhone is measured from a Mac with Xcode 15 or later"
        if not self._app:
            return f"the bundle identifier of the app with the runner is not set; set {APP_VARIABLE}"
        phones = list_phones()
        if not any(phone.connected and phone.identifier == self._identifier for phone in phones):
            return f"not connected; known: {', '.join(phone.identifier for phone in phones) or 'none'}"
        return None

    def control(self, *words: str) -> list[str]:
        return ["xcrun", "devicectl", "device", *words, "--device", self._identifier]

    def copy_words(self, source: Path, target: str) -> list[str]:
        place = ("--domain-type", "appDataContainer", "--domain-identifier", self._app)
        return [*self.control("copy", "to"), *place, "--source", str(source), "--destination", f"Documents/{target}"]

    def place(self, artifact: Path, names: Sequence[str], runner: RunnerFiles) -> Placed:
        for name in names:
            self._copy(artifact / name, f"artifact/{name}")
        return Placed("artifact", "")

    def write(self, name: str, text: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / name).write_text(text, encoding="utf-8")
            self._copy(Path(folder) / name, name)
        return name

    def command(self, words: Sequence[str]) -> HostCommand:
        """The runner is the app itself, so that only what follows its name is passed on."""
        launch = self.control("process", "launch", "--console", "--terminate-existing")
        return HostCommand((*launch, self._app, *words[1:]))

    def shell(self, script: str) -> str | None:
        return ""  # there is no shell on it; conditions stay null

    def answers(self) -> bool:
        return any(phone.connected and phone.identifier == self._identifier for phone in list_phones())

    def clean_up(self) -> None:
        """The app's folder stays: devicectl removes nothing from it."""

    def _copy(self, source: Path, target: str) -> None:
        done: Finished = run_program(self.copy_words(source, target), PUSH_TIME_LIMIT_S)
        if not done.ok:
            raise ToolchainMissing(
                f"{self.name}, while copying {source.name}: {done.reason}", "see: slm-export devices"
            )


class IphoneKind:
    """`iphone` for the only connected one."""

    needs_runner = True

    def device(self, argument: str) -> Device:
        connected = [] if argument else [phone.identifier for phone in list_phones() if phone.connected]
        return IphoneDevice(connected[0] if len(connected) == 1 else argument)

    def attached(self) -> list[Device]:
        return [IphoneDevice(phone.identifier) for phone in list_phones()] or [IphoneDevice("")]


DEVICES.add("iphone", IphoneKind())
