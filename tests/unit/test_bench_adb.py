"""The real adb client against a device of the ADB protocol on this machine: what is pushed, what comes back, and pulling the plug."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from device_tests.devices import adb
from device_tests.devices.adb import AdbDevice
from device_tests.devices.base import RunnerFiles
from device_tests.harness import Job, Measurement, measure
from device_tests.loopback_adb import LoopbackAdb
from device_tests.process import run_program
from device_tests.protocol import RunnerRequest
from exporter.errors import ExitCode
from exporter.report.latency import latency_section, shown_latency
from exporter.targets.base import Obtained

TIME_LIMIT_S = 30.0
RUNNER = f"""#!{sys.executable}
import json, os, sys, threading, time
def watch():
    while os.read(0, 4096): pass
    os._exit(9)
threading.Thread(target=watch, daemon=True).start()
def say(event, **values): print(json.dumps({{"event": event, **values}}), flush=True)
request = json.load(open(sys.argv[1]))
open("pid", "w").write(str(os.getpid()))
halt = open(request["artifact"] + "/model.txt").read().strip()
def reach(stage):
    open("stage." + stage, "w").close()
    if stage == halt: time.sleep(1000)
reach("loading")
say("loaded", engine="pretend 1", load_ns=1000, threads=1, affinity="0", protocol=1)
reach("before the first token")
for index in range(3):
    say("repetition", prompt=0, index=index, warm_up=index == 0, ttft_ns=5000, token_ids=[1, 2], decode_ns=[10])
    if index == 1: reach("between tokens")
reach("reading memory")
say("memory", peak_rss_bytes=1, kv_bytes=2)
reach("probing")
say("ended")
"""


def call(*arguments: str) -> str:
    return run_program([str(adb.client()), *arguments], 20).output


@pytest.fixture(scope="module", autouse=True)
def _adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server of its own, on a port that no other one has; its keys go to a folder of the test."""
    if adb.client() is None:
        pytest.skip(f"there is no adb; {adb.CLIENT_STEP}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    patch = pytest.MonkeyPatch()
    patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
    patch.setenv("HOME", str(tmp_path_factory.mktemp("adb-home")))
    yield
    call("kill-server")
    patch.undo()


@dataclass
class Phone:
    """A loopback device that the client is connected to."""

    device: LoopbackAdb
    folder: Path

    def measure(self, halt: str = "nowhere") -> Measurement:
        """The runner goes on working for ever once it reaches the stage that the artifact names."""
        artifact = self.folder / "artifact"
        artifact.mkdir(exist_ok=True)
        (artifact / "model.txt").write_text(f"{halt}\n", encoding="utf-8")
        (artifact / "host.json").write_text("{}", encoding="utf-8")
        runner = self.folder / "pretend_runner"
        runner.write_text(RUNNER, encoding="utf-8")
        request = RunnerRequest("", ((1,),), 2, 1, 2, ())
        files = RunnerFiles(("$RUNNER/pretend_runner",), (runner,))
        return measure(
            AdbDevice(self.device.serial), Job(artifact, ("model.txt", "host.json"), files, request, TIME_LIMIT_S)
        )

    def inside(self, name: str) -> Path:
        return self.device.path(f"{adb.FOLDER}/{name}")


@pytest.fixture
def plug(tmp_path: Path) -> Iterator[Callable[..., Phone]]:
    with ExitStack() as stack:

        def plug_in(name: str = "phone", on_service: Callable[[str], None] = lambda _: None) -> Phone:
            folder = tmp_path / name
            device = stack.enter_context(LoopbackAdb(folder / "root", on_service=on_service))
            assert "connected" in call("connect", device.serial)
            return Phone(device, folder)

        yield plug_in
        call("disconnect")


def test_a_device_is_found_measured_and_known_to_be_no_phone(plug: Callable[..., Phone]) -> None:
    phone = plug()
    assert adb.attached_states()[phone.device.serial] == "device"
    assert AdbDevice(phone.device.serial).lacks() is None
    found = phone.measure()
    assert found.failure is None
    assert [item.token_ids for item in found.timed(0)] == [(1, 2), (1, 2)]
    assert found.conditions is not None
    assert found.conditions.identity.model == "loopback"
    assert found.device.obtained is Obtained.EMULATED


def test_only_what_changed_is_pushed_and_what_is_no_longer_wanted_goes(plug: Callable[..., Phone]) -> None:
    phone = plug()
    phone.measure()
    names = [Path(name).name for name in phone.device.received]
    assert sorted(names) == ["host.json", "model.txt", "pretend_runner", "request.json"]
    phone.inside("artifact/old.bin").write_text("left over", encoding="utf-8")
    phone.device.received.clear()
    phone.measure()
    assert [Path(name).name for name in phone.device.received] == ["request.json"]
    assert not phone.inside("artifact/old.bin").exists()
    assert not phone.inside("request.json").exists()
    phone.device.received.clear()
    phone.measure("elsewhere")
    assert [Path(name).name for name in phone.device.received] == ["model.txt", "request.json"]


def test_the_exit_status_and_the_streams_of_a_command_come_back(plug: Callable[..., Phone]) -> None:
    serial = plug().device.serial
    command = [str(adb.client()), "-s", serial]
    done = run_program([*command, "shell", "echo out; echo err >&2; exit 7"], 20)
    assert (done.status, done.output, done.errors) == (7, "out\n", "err\n")
    assert run_program([*command, "push", __file__, "/../../escape"], 20).status != 0
    fed = subprocess.run([*command, "shell", "cat"], input=b"fed\n", capture_output=True, timeout=20, check=True)
    assert fed.stdout == b"fed\n"


def test_large_files_survive_both_ways(plug: Callable[..., Phone], tmp_path: Path) -> None:
    command = [str(adb.client()), "-s", plug().device.serial]
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(os.urandom(3_000_001))
    for words in (["push", str(sent), "/data/local/tmp/file"], ["pull", "/data/local/tmp/file", str(back)]):
        assert run_program([*command, *words], 30).ok
    assert sent.read_bytes() == back.read_bytes()


def test_two_devices_are_measured_at_once(plug: Callable[..., Phone]) -> None:
    phones = [plug("first"), plug("second")]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(Phone.measure, phones))
    assert [item.failure for item in found] == [None, None]
    assert len({item.device.name for item in found}) == 2


SERVICES = {
    "listing files": ("shell", "sha256sum"),
    "pushing": ("sync:", ""),
    "asking for conditions": ("shell", "uname"),
    "starting the runner": ("shell", "pretend_runner request.json"),
}
STAGES = ("loading", "before the first token", "between tokens", "reading memory", "probing")


@pytest.mark.parametrize("phase", SERVICES)
def test_a_device_that_is_unplugged_before_the_runner_works(plug: Callable[..., Phone], phase: str) -> None:
    phone: Phone | None = None
    head, part = SERVICES[phase]

    def pull(service: str) -> None:
        if phone is not None and service.startswith(head) and part in service:
            phone.device.unplug()

    phone = plug(on_service=pull)
    is_lost(phone, phone.measure)


@pytest.mark.parametrize("stage", STAGES)
def test_a_device_that_is_unplugged_while_the_runner_works(plug: Callable[..., Phone], stage: str) -> None:
    phone = plug()

    def pull() -> None:
        while not phone.inside(f"stage.{stage}").exists():
            time.sleep(0.02)
        phone.device.unplug()

    threading.Thread(target=pull, daemon=True).start()
    found = is_lost(phone, lambda: phone.measure(stage))
    assert len(found.heard.repetitions) <= {"between tokens": 2}.get(stage, 3)
    process = int(phone.inside("pid").read_text())
    assert gone_within(5.0, lambda: Path(f"/proc/{process}").exists())


def is_lost(phone: Phone, run: Callable[[], Measurement]) -> Measurement:
    """Exit code 6 and the device's name before the time limit, a report that says partial, and no program of this host still at it."""
    found = run()
    assert found.failure is not None
    assert "no longer answers (no answer within the time limit)" not in found.failure.message
    assert found.failure.exit_code == ExitCode.TOOLCHAIN_MISSING
    assert phone.device.serial in found.failure.message
    section = latency_section(found, 1000, None, None)
    assert (section["status"], section["decode_ms"]) == ("partial", None)
    assert shown_latency(section) is None
    assert gone_within(5.0, lambda: clients_of(phone.device.serial))
    return found


def clients_of(serial: str) -> list[str]:
    """Command lines of this host's programs that talk to a device."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode())
    return [line for line in lines if f"-s {serial} " in line]


def gone_within(seconds: float, there: Callable[[], object]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not there():
            return True
        time.sleep(0.05)
    return False


def test_a_device_that_does_not_connect_is_missing_before_any_work(plug: Callable[..., Phone]) -> None:
    phone = plug()
    phone.device.unplug()
    assert gone_within(5.0, lambda: AdbDevice(phone.device.serial).lacks() is None)
    is_lost(phone, phone.measure)


def test_a_serial_that_is_not_attached_says_so() -> None:
    assert "not attached" in str(AdbDevice("NO-SUCH-SERIAL").lacks())
    assert "no device is attached" in str(AdbDevice("").lacks())
