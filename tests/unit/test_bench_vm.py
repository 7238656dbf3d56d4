"""The arm64 virtual machine without one: what is refused, what its first file system is, and that nothing outlives a measurement."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import REPOSITORY, Run

from device_tests.devices import arm64_vm
from device_tests.devices.arm64_vm import Arm64Vm, Machine
from device_tests.vm.image import INITRD, KERNEL, READY, cpio
from exporter.errors import ToolchainMissing


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like one, and an emulator that says that adbd starts, and stays."""
    for name in (KERNEL, INITRD):
        (tmp_path / name).write_bytes(b"")
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\necho {READY}\necho $$ > {tmp_path}/pid\nexec sleep 1000\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv(arm64_vm.QEMU_VARIABLE, str(program))
    monkeypatch.setenv(arm64_vm.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(path: Path) -> str:
    for _ in range(600):  # a busy machine takes seconds to import what starts it
        if path.exists() and (text := path.read_text().strip()):
            return text
        time.sleep(0.05)
    raise TimeoutError(path)


def test_without_a_machine_the_answer_is_how_to_make_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(arm64_vm.FOLDER_VARIABLE, raising=False)
    assert "python -m device_tests.vm.image" in str(Arm64Vm().lacks())
    assert "missing  arm64-vm" in run("devices").out


def test_a_machine_ends_with_the_measurement(machine: Path) -> None:
    started = Machine(machine, 1 << 30)
    pid = wait_for(machine / "pid")
    assert running(pid)
    assert READY in started.said()
    started.stop()
    assert not running(pid)


def test_a_machine_ends_with_the_program_that_started_it(machine: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from device_tests.devices.arm64_vm import Machine;"
        f"Machine(Path({str(machine)!r}), 1 << 30); time.sleep(1000)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    pid = wait_for(machine / "pid")
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not running(pid):
            return
        time.sleep(0.05)
    pytest.fail("the machine still runs")


def test_a_machine_that_does_not_come_up_says_why(machine: Path) -> None:
    (machine / "qemu").write_text("#!/bin/sh\necho no such kernel\nkill $PPID\n", encoding="utf-8")
    started = Machine(machine, 1 << 30)
    with pytest.raises(ToolchainMissing, match="no such kernel"):
        started.connect()
    started.stop()


def test_the_first_file_system_holds_files_links_and_modes(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_bytes(b"abcde")
    (root / "bin/tool").chmod(0o755)
    (root / "bin/alias").symlink_to("tool")
    found, archive = {}, b"".join(cpio(root))
    while archive:
        assert archive[:6] == b"070701"
        mode, size, label = (int(archive[at : at + 8], 16) for at in (14, 54, 94))
        start = 110 + label + -(110 + label) % 4
        found[archive[110 : 110 + label - 1].decode()] = (mode, archive[start : start + size])
        archive = archive[start + size + -size % 4 :]
    assert found["bin/tool"] == (0o100755, b"abcde")
    assert found["bin/alias"][1] == b"tool"
    assert list(found)[-1] == "TRAILER!!!"
