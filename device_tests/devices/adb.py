"""Android devices through the adb client."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from device_tests.devices.base import DEVICES, SHELL_TIME_LIMIT_S, Device
from device_tests.devices.remote import PUSH_TIME_LIMIT_S, RemoteDevice
from device_tests.process import Finished, run_program

CLIENT_VARIABLE = "SLM_EXPORT_ADB"
CLIENT_STEP = f"install Android's platform tools, or pip install adbutils, or set {CLIENT_VARIABLE} to the adb program"
FOLDER = "/data/local/tmp/slm-export"


def client() -> str | None:
    """The adb program: named, on the path, or bundled with the Python package adbutils."""
    named = os.environ.get(CLIENT_VARIABLE) or shutil.which("adb")
    if named:
        return named
    package = importlib.util.find_spec("adbutils")
    bundled = Path(package.origin or "").parent / "binaries" / "adb" if package else None
    return str(bundled) if bundled and bundled.is_file() else None


@dataclass(frozen=True)
class AdbTransport:
    """Shell and push for one serial number."""

    name: str
    serial: str

    def words(self, *arguments: str) -> list[str]:
        return [client() or "adb", "-s", self.serial, *arguments]

    def shell(self, script: str) -> list[str]:
        return self.words("shell", script)

    def run(self, script: str) -> Finished:
        return run_program(self.shell(script), SHELL_TIME_LIMIT_S)

    def push(self, source: Path, target: str) -> Finished:
        return run_program(self.words("push", str(source), target), PUSH_TIME_LIMIT_S)


class AdbDevice(RemoteDevice):
    """One serial number, `adb:SERIAL`."""

    def __init__(self, serial: str) -> None:
        self._serial = serial
        self._adb = AdbTransport(f"adb:{serial}" if serial else "adb", serial)
        super().__init__(self._adb, FOLDER)

    @property
    def on_this_host(self) -> bool:
        return self._serial.startswith(("emulator-", "127.0.0.1:", "localhost:"))

    def lacks(self) -> str | None:
        if client() is None:
            return f"there is no adb; {CLIENT_STEP}"
        states = attached_states()
        if not self._serial:
            return _several(states)
        state = states.get(self._serial)
        if state == "unauthorized":
            return "allow USB debugging on its screen"
        if state is None and self.answers():
            return None
        return None if state == "device" else f"{state or 'not attached'}; see: adb devices"

    def answers(self) -> bool:
        return run_program(self._adb.words("get-state"), SHELL_TIME_LIMIT_S).output.strip() == "device"


def attached_states() -> dict[str, str]:
    """Serial number -> state, as `adb devices` says."""
    program = client()
    if program is None:
        return {}
    lines = run_program([program, "devices"], 2 * SHELL_TIME_LIMIT_S).output.splitlines()
    pairs = [line.split("\t") for line in lines if "\t" in line]
    return {serial: state.strip() for serial, state in pairs}


def ready_serials(states: dict[str, str]) -> list[str]:
    """Serial numbers of devices that answer."""
    return sorted(serial for serial, state in states.items() if state == "device")


def _several(states: dict[str, str]) -> str:
    """Why `adb` alone does not name a device."""
    ready = ready_serials(states)
    if not ready:
        return "no device is attached; connect one and allow USB debugging"
    return f"several are attached; name one: {', '.join(f'adb:{serial}' for serial in ready)}"


class AdbKind:
    """`adb` for the only device, `adb:SERIAL` for one of several."""

    needs_runner = True

    def device(self, argument: str) -> Device:
        ready = [] if argument else ready_serials(attached_states())
        return AdbDevice(ready[0] if len(ready) == 1 else argument)

    def attached(self) -> list[Device]:
        return [AdbDevice(serial) for serial in attached_states()] or [AdbDevice("")]


DEVICES.add("adb", AdbKind())
