"""Several devices in one measurement: side by side where they are apart, each with the runner that is meant for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from bench_cases import PretendDevice
from command_line import Run
from rich.console import Console

from device_tests.devices.base import Device, RunnerFiles
from device_tests.harness import Job, Measurement
from exporter import bench
from exporter.bench import BenchRequest, chosen_runner, ready_devices
from exporter.errors import ExitCode, UsageError
from exporter.progress import StageDisplay
from exporter.targets.base import find_target
from exporter.verify.greedy import GreedyReference

WAIT_S = 5.0


def measured_together(monkeypatch: pytest.MonkeyPatch, on_this_host: Sequence[bool]) -> list[int]:
    """How many devices were being measured at the moment when each one was, as far as they wait for each other."""
    running, seen, changed = set[str](), list[int](), threading.Condition()

    def measure(device: Device, job: Job) -> Measurement:
        with changed:
            running.add(device.name)
            changed.notify_all()
            changed.wait_for(lambda: len(running) == sum(not here for here in on_this_host), 0.2)
            seen.append(len(running))
            changed.notify_all()
        with changed:
            changed.wait_for(lambda: len(seen) >= len(running), WAIT_S)
            running.discard(device.name)
        return Measurement(device, job.request, None, None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(bench, "measure", measure)
    devices = [PretendDevice(name=f"device{number}") for number in range(len(on_this_host))]
    for device, here in zip(devices, on_this_host, strict=True):
        device.on_this_host = here
    pairs = [(device, RunnerFiles(("runner",))) for device in devices]
    request = BenchRequest(Path("out"))
    references = [GreedyReference((1, 2), (3,), (1.0,))]
    found = bench._measure_all(
        request, {"outputs": {}}, pairs, references, 1000, StageDisplay(Console(quiet=True), quiet=True)
    )
    assert [item.device.name for item in found] == [device.name for device in devices]
    return seen


def test_devices_of_their_own_are_measured_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured_together(monkeypatch, [False, False, False]) == [3, 3, 3]


def test_devices_that_share_this_processor_are_measured_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured_together(monkeypatch, [True, True]) == [1, 1]


def test_a_runner_is_named_for_a_device_for_its_kind_or_for_all() -> None:
    runners = ("common", "adb=phones", "adb:A1=this-phone")
    assert chosen_runner(runners, "adb:A1") == Path("this-phone")
    assert chosen_runner(runners, "adb:B2") == Path("phones")
    assert chosen_runner(runners, "local") == Path("common")
    assert chosen_runner(("adb=phones",), "local") is None


def test_a_runner_for_a_device_that_is_not_asked_for_is_refused() -> None:
    request = BenchRequest(Path("out"), ("local",), runners=("adb=phones",))
    with pytest.raises(UsageError, match="no --device adb"):
        ready_devices(request, find_target("onnxruntime-cpu"))


def test_a_device_that_is_missing_ends_an_export_before_it_begins(run: Run, tmp_path: Path) -> None:
    ended = run("--recipe", "android-cpu", "--output", str(tmp_path / "out"), "--device", "iphone")
    assert ended.code == ExitCode.TOOLCHAIN_MISSING
    assert "there is no xcrun" in ended.err
    assert "quantize" not in ended.out
