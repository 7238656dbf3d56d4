"""An arm64 processor imitated by qemu-user: the device's own code and libraries run, and its tokens are real; its times are not."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from device_tests.devices.base import DEVICES, Device, HostCommand, Placed, RunnerFiles
from device_tests.devices.local import LocalDevice
from exporter.errors import UsageError
from exporter.targets.base import Obtained

QEMU_VARIABLE = "SLM_EXPORT_QEMU"
PROCESSOR = "cortex-a76"
CPU_INFO = """processor\t: {number}
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0b
CPU revision\t: 1

"""
"""As Linux describes a Cortex-A76. ONNX Runtime reads it to choose kernels, and crashes on this machine's own."""


def emulator() -> str | None:
    """The program: named, or on the path."""
    names = ("qemu-aarch64-static", "qemu-aarch64")
    return os.environ.get(QEMU_VARIABLE) or next((found for name in names if (found := shutil.which(name))), None)


class EmulatedArm64:
    """Files stay on this machine; a runner with its own C library runs under the emulator."""

    name = "emulated-arm64"
    obtained = Obtained.EMULATED
    on_this_host = True

    def __init__(self) -> None:
        self._host = LocalDevice()
        self._files: tempfile.TemporaryDirectory[str] | None = None

    def lacks(self) -> str | None:
        if emulator() is None:
            return f"there is no qemu-aarch64; install qemu-user-static, or set {QEMU_VARIABLE} to the program"
        return None

    def place(self, artifact: Path, names: Sequence[str], runner: RunnerFiles) -> Placed:
        self._files = tempfile.TemporaryDirectory(prefix="slm-export-arm64-")
        write_processor_files(Path(self._files.name))
        return self._host.place(artifact, names, runner)

    def write(self, name: str, text: str) -> str:
        return self._host.write(name, text)

    def command(self, words: Sequence[str]) -> HostCommand:
        root = self._files.name if self._files else "/"
        return HostCommand((emulator() or "qemu-aarch64", "-cpu", PROCESSOR, "-L", root, *words))

    def shell(self, script: str) -> str | None:
        return ""  # this machine's clocks say nothing about the one that is imitated

    def answers(self) -> bool:
        return True

    def clean_up(self) -> None:
        self._host.clean_up()
        if self._files is not None:
            self._files.cleanup()
            self._files = None


def write_processor_files(root: Path) -> None:
    """What a program finds in /proc and /sys, where the emulator looks first."""
    cores = root / "sys/devices/system/cpu"
    cores.mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("".join(CPU_INFO.format(number=number) for number in range(2)), encoding="ascii")
    for name in ("possible", "present"):
        (cores / name).write_text("0-1\n", encoding="ascii")


class EmulatedKind:
    """There is one."""

    needs_runner = True

    def device(self, argument: str) -> Device:
        if argument:
            raise UsageError(f"--device emulated-arm64:{argument}: there is one only", "use --device emulated-arm64")
        return EmulatedArm64()

    def attached(self) -> list[Device]:
        return [EmulatedArm64()]


DEVICES.add("emulated-arm64", EmulatedKind())
