"""Measurements without a device."""

from __future__ import annotations

from pathlib import Path

from device_tests.conditions import Conditions, Identity, Snapshot
from device_tests.devices.base import RunnerFiles
from device_tests.devices.local import LocalDevice
from device_tests.harness import Heard, Measurement
from device_tests.official import PARSERS, OfficialFigures
from device_tests.official_run import OfficialJob, OfficialMeasurement, Prompt
from device_tests.protocol import Loaded, Memory, Probe, Repetition, RunnerRequest
from exporter.errors import SlmExportError
from exporter.targets.base import Obtained

MS = 1_000_000


class PretendDevice(LocalDevice):
    """This machine under another name, with times that came about otherwise."""

    def __init__(self, obtained: Obtained = Obtained.MEASURED, name: str = "pretend") -> None:
        super().__init__()
        self.obtained, self.name = obtained, name


def snapshot(at_s: float, thermal_status: int | None = 0, max_khz: tuple[int, ...] = (2_000_000,)) -> Snapshot:
    return Snapshot(at_s, 0.5, "performance", (1_000_000,), max_khz, 40.0, thermal_status, 80, 30.0)


def measured(
    obtained: Obtained = Obtained.MEASURED,
    failure: SlmExportError | None = None,
    decode_ms: tuple[float, ...] = (4.0, 5.0, 6.0),
    repetitions: int = 3,
) -> Measurement:
    """Two prompts of 2 and 4 tokens; every repetition has the same decode times, and takes ten times the first of them to start."""
    request = RunnerRequest("out", ((1, 2), (1, 2, 3, 4)), len(decode_ms) + 1, 1, repetitions, (1000, 2000))
    heard = Heard("ended", Loaded("engine 1", 7 * MS, 2, "0,1", 1))
    gaps, tokens = tuple(round(value * MS) for value in decode_ms), tuple(range(len(decode_ms) + 1))
    for prompt in range(2):
        for index in range(1 + repetitions):
            heard.repetitions.append(Repetition(prompt, index, index == 0, 10 * gaps[0], tokens, gaps))
            heard.spans_s.append((float(index), float(index + 1)))
    heard.memory = Memory(123_000_000, 4096)
    heard.probes = [Probe(1000, 1, (100, 50)), Probe(2000, 1, (200, 400))]
    heard.ended = True
    identity = Identity("Linux 6.1", "aarch64", "core", "soc", "phone", "Android 15", 8_000_000_000)
    conditions = Conditions(identity, snapshot(0.0), (snapshot(1.0),), snapshot(9.0))
    return Measurement(PretendDevice(obtained), request, heard, conditions, failure)


def measured_by_a_tool() -> OfficialMeasurement:
    """One prompt, two runs."""
    tool, figures = PARSERS.get("executorch"), [OfficialFigures("executorch", "as it is", 1.0, 2.0, 3.0, 4.0)] * 2
    job = OfficialJob(
        Path("out"), (), RunnerFiles(("tool",)), tool, (), (Prompt(8, "text"),), 4, 1, 2, 9.0, Path("tool.log")
    )
    return OfficialMeasurement(PretendDevice(), job, ["tool"], [figures], measured().conditions)
