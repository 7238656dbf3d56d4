"""An arm64 virtual machine with the real adbd, behind the real adb client: the bytes and the transport of a phone, with a clock of its own.

It boots when files are placed and ends with the measurement. The machine reaches nothing but the port that is forwarded to it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from device_tests.devices.adb import CLIENT_STEP, AdbDevice, client
from device_tests.devices.base import DEVICES, Device, HostCommand, Placed, RunnerFiles
from device_tests.process import run_program
from device_tests.vm.image import INITRD, KERNEL, READY
from exporter.errors import ToolchainMissing, UsageError
from exporter.targets.base import Obtained

FOLDER_VARIABLE, QEMU_VARIABLE = "SLM_EXPORT_VM", "SLM_EXPORT_QEMU_SYSTEM"
PROCESSOR, CORES = "cortex-a76", 2
DAEMON_PORT = 5555
BOOT_TIME_LIMIT_S = 120.0
SYSTEM_BYTES = 512_000_000
COPIES = 3
"""Its root lies in memory, half of which files may take."""
UNTIL_INPUT_ENDS = '"$@" < /dev/null & child=$!; cat > /dev/null; kill -9 $child; wait $child 2> /dev/null'
"""A machine must not outlive the program that started it, however that ends."""


def emulator() -> str | None:
    """The program: named, or on the path."""
    return os.environ.get(QEMU_VARIABLE) or shutil.which("qemu-system-aarch64")


class Machine:
    """One that runs. Raises ToolchainMissing when it does not come up."""

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.serial = f"127.0.0.1:{free.getsockname()[1]}"
        self._console = tempfile.TemporaryFile()  # noqa: SIM115  closed with the machine
        self._process = subprocess.Popen(
            ["sh", "-c", UNTIL_INPUT_ENDS, "sh", *self._words(folder, memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _words(self, folder: Path, memory_bytes: int) -> list[str]:
        forwarded = f"user,id=net,restrict=on,hostfwd=tcp:{self.serial}-:{DAEMON_PORT}"
        return [
            *(emulator() or "qemu-system-aarch64", "-M", "virt", "-cpu", PROCESSOR, "-smp", str(CORES)),
            *("-m", str(memory_bytes >> 20), "-nographic", "-no-reboot", "-append", "console=ttyAMA0 panic=-1 quiet"),
            *("-kernel", str(folder / KERNEL), "-initrd", str(folder / INITRD)),
            *("-netdev", forwarded, "-device", "virtio-net-pci,netdev=net,romfile="),
        ]

    def connect(self) -> None:
        """Waits until the client has it."""
        end = time.monotonic() + BOOT_TIME_LIMIT_S
        while time.monotonic() < end and self._process.poll() is None:
            if READY in self.said():
                run_program([client() or "adb", "connect", self.serial], 10)
                if run_program([client() or "adb", "-s", self.serial, "shell", "true"], 10).ok:
                    return
            time.sleep(0.5)
        said = [line for line in self.said().splitlines() if line.strip()]
        raise ToolchainMissing(
            f"arm64-vm: it did not come up: {said[-1] if said else 'no output'}",
            "make it again: python -m device_tests.vm.image",
        )

    def said(self) -> str:
        return os.pread(self._console.fileno(), 1 << 20, 0).decode(errors="replace")

    def stop(self) -> None:
        run_program([client() or "adb", "disconnect", self.serial], 10)
        self._process.communicate()
        self._console.close()


class Arm64Vm:
    """See the module."""

    name = "arm64-vm"
    obtained = Obtained.EMULATED
    on_this_host = True

    def __init__(self) -> None:
        self._machine: Machine | None = None
        self._inside: AdbDevice | None = None

    def lacks(self) -> str | None:
        folder = Path(os.environ.get(FOLDER_VARIABLE, ""))
        if FOLDER_VARIABLE not in os.environ or not (folder / INITRD).is_file():
            return f"there is no machine; make one with python -m device_tests.vm.image, and set {FOLDER_VARIABLE} to its folder"
        if emulator() is None:
            return f"there is no qemu-system-aarch64; install qemu-system-arm, or set {QEMU_VARIABLE} to the program"
        return None if client() else f"there is no adb; {CLIENT_STEP}"

    def place(self, artifact: Path, names: Sequence[str], runner: RunnerFiles) -> Placed:
        files = [*(artifact / name for name in names), *runner.files]
        memory = SYSTEM_BYTES + COPIES * sum(file.stat().st_size for file in files)
        self._machine = Machine(Path(os.environ[FOLDER_VARIABLE]), memory)
        self._machine.connect()
        self._inside = AdbDevice(self._machine.serial)
        return self._inside.place(artifact, names, runner)

    def write(self, name: str, text: str) -> str:
        return self._running().write(name, text)

    def command(self, words: Sequence[str]) -> HostCommand:
        return self._running().command(words)

    def shell(self, script: str) -> str | None:
        return self._running().shell(script)

    def answers(self) -> bool:
        return self._inside is not None and self._inside.answers()

    def clean_up(self) -> None:
        """The machine goes, with all that is in it."""
        if self._machine is not None:
            self._machine.stop()
        self._machine = self._inside = None

    def _running(self) -> AdbDevice:
        if self._inside is None:
            raise ToolchainMissing("arm64-vm: the machine does not run", "see: slm-export devices")
        return self._inside


class Arm64VmKind:
    """There is one."""

    needs_runner = True

    def device(self, argument: str) -> Device:
        if argument:
            raise UsageError(f"--device arm64-vm:{argument}: there is one only", "use --device arm64-vm")
        return Arm64Vm()

    def attached(self) -> list[Device]:
        return [Arm64Vm()]


DEVICES.add("arm64-vm", Arm64VmKind())
