"""One measurement on one device: place, start, listen, judge. The same path for every kind of device and every engine."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from device_tests.conditions import Conditions, Watch
from device_tests.devices.base import Device, RunnerFiles
from device_tests.process import Finished, LineStream
from device_tests.protocol import (
    REQUEST_FILE,
    Ended,
    Event,
    Loaded,
    Memory,
    Probe,
    Repetition,
    RunnerRequest,
    parse_line,
)
from device_tests.statistics import Run
from exporter.errors import ChildFailed, SlmExportError, ToolchainMissing


@dataclass(frozen=True)
class Job:
    """What to measure: the named files of an export, with a runner, on prompts."""

    artifact: Path
    names: tuple[str, ...]
    runner: RunnerFiles
    request: RunnerRequest
    time_limit_s: float


@dataclass
class Heard:
    """What a runner said so far; `phase` is what it is doing now."""

    phase: str = "placing files"
    loaded: Loaded | None = None
    repetitions: list[Repetition] = field(default_factory=list)
    spans_s: list[tuple[float, float]] = field(default_factory=list)
    memory: Memory | None = None
    probes: list[Probe] = field(default_factory=list)
    ended: bool = False

    def take(self, event: Event, request: RunnerRequest, since_s: float, now_s: float) -> None:
        match event:
            case Loaded():
                self.loaded = event
            case Repetition():
                self.repetitions.append(event)
                self.spans_s.append((since_s, now_s))
            case Memory():
                self.memory = event
            case Probe():
                self.probes.append(event)
            case Ended():
                self.ended = True
        self.phase = self._next_phase(request)

    def _next_phase(self, request: RunnerRequest) -> str:
        each = request.warm_up + request.repetitions
        done = len(self.repetitions)
        if done < each * len(request.prompts):
            prompt = request.prompts[done // each]
            return f"repetition {done % each + 1} of {each}, prompt of {len(prompt)} tokens"
        return "reading memory" if self.memory is None else "probing the bandwidth"


@dataclass(frozen=True)
class Measurement:
    """What came of a job; with a `failure` it is partial, and none of its figures are to be believed."""

    device: Device
    request: RunnerRequest
    heard: Heard
    conditions: Conditions | None
    failure: SlmExportError | None

    def timed(self, prompt: int) -> list[Repetition]:
        return [item for item in self.heard.repetitions if item.prompt == prompt and not item.warm_up]

    def runs(self, prompt: int) -> list[Run]:
        """In milliseconds."""
        return [Run(item.ttft_ns / 1e6, tuple(gap / 1e6 for gap in item.decode_ns)) for item in self.timed(prompt)]

    def disturbed(self, prompt: int) -> list[bool]:
        """Per timed repetition: whether the device grew hotter or lowered its clocks meanwhile."""
        pairs = zip(self.heard.repetitions, self.heard.spans_s, strict=True)
        return [
            self.conditions is not None and self.conditions.disturbed(*span)
            for item, span in pairs
            if item.prompt == prompt and not item.warm_up
        ]


def measure(device: Device, job: Job, on_progress: Callable[[str], None] = lambda _: None) -> Measurement:
    """Runs a job. Never raises for what the device does: a failure is part of the measurement."""
    heard, conditions = Heard(), None
    failure: SlmExportError | None = None
    try:
        placed = device.place(job.artifact, job.names, job.runner)
        request = device.write(REQUEST_FILE, _placed_request(job, placed.artifact).to_json())
        words = [word.replace("$RUNNER", placed.runner) for word in job.runner.words]
        heard.phase = "loading"
        with Watch(device.shell) as watch:
            try:
                _listen(device, [*words, request], job, heard, watch, on_progress)
            except SlmExportError as fault:
                failure = fault
        conditions = watch.conditions()
    except SlmExportError as fault:
        failure = fault
    finally:
        device.clean_up()
    return Measurement(device, job.request, heard, conditions, failure)


def _placed_request(job: Job, artifact: str) -> RunnerRequest:
    values = job.request.__dict__ | {"artifact": artifact, "driver": job.runner.driver}
    return RunnerRequest(**values)


def _listen(
    device: Device, words: list[str], job: Job, heard: Heard, watch: Watch, on_progress: Callable[[str], None]
) -> None:
    command, since = device.command(words), watch.now()
    with closing(_start(command.words, job.time_limit_s, dict(command.environment))) as stream:
        lines = stream.lines()
        while True:
            line, finished = _next_line(lines)
            if finished is not None:
                break
            event = parse_line(line)
            if event is not None:
                now = watch.now()
                heard.take(event, job.request, since, now)
                since = now
                on_progress(heard.phase)
    if not (heard.ended and finished.ok):
        raise _failure(device, heard, finished, job.time_limit_s)


def _start(words: tuple[str, ...], limit_s: float, environment: dict[str, str]) -> LineStream:
    try:
        return LineStream(words, limit_s, environment)
    except OSError as fault:
        raise ToolchainMissing(f"{words[0]}: {fault.strerror}", "see: slm-export devices") from None


def _next_line(lines: Generator[str, None, Finished]) -> tuple[str, Finished | None]:
    try:
        return next(lines), None
    except StopIteration as end:
        return "", end.value


def _failure(device: Device, heard: Heard, finished: Finished, limit_s: float) -> SlmExportError:
    where = f"{device.name}, while {heard.phase}"
    if not device.answers():
        return ToolchainMissing(
            f"{where}: the device no longer answers ({finished.reason})", "attach it again; see: slm-export devices"
        )
    if finished.status is None:
        return ToolchainMissing(
            f"{where}: nothing ended within {limit_s:.0f} s", "raise --time-limit, or free the device"
        )
    return ChildFailed(f"{where}: the runner ended with {finished.reason}", "run it by hand to see more")
