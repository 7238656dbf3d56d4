"""A tool of others on a device: place, start, read what it prints when it has ended. The same path for every kind of device.

Such a tool does not speak `protocol.py`: nothing is known before its end, and it does not end with its standard input, so that on another
machine one that is started runs on when the connection goes.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from device_tests.conditions import Conditions, Watch
from device_tests.devices.base import Device, Placed, RunnerFiles
from device_tests.official import PLACEHOLDERS, OfficialFigures, OfficialTool
from device_tests.process import Finished, run_program
from exporter.errors import ChildFailed, SlmExportError, ToolchainMissing, UsageError


@dataclass(frozen=True)
class Prompt:
    """A text, and how many tokens it was made of."""

    tokens: int
    text: str


@dataclass(frozen=True)
class OfficialJob:
    """What to measure: a tool, the words behind its name, and prompts to continue. `log` takes all that it prints."""

    artifact: Path
    names: tuple[str, ...]
    runner: RunnerFiles
    tool: OfficialTool
    arguments: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    generated_tokens: int
    warm_up: int
    repetitions: int
    time_limit_s: float
    log: Path

    @property
    def runs(self) -> int:
        """Starts of the tool for one prompt, the first of which may be warm-up."""
        return 1 if self.repeats_itself else self.warm_up + self.repetitions

    @property
    def repeats_itself(self) -> bool:
        return any("REPETITIONS" in Template(word).get_identifiers() for word in self.arguments)


@dataclass
class OfficialMeasurement:
    """What came of a job: figures of every run that counts, per prompt. With a `failure` it is partial."""

    device: Device
    job: OfficialJob
    commands: list[str] = field(default_factory=list)
    figures: list[list[OfficialFigures]] = field(default_factory=list)
    conditions: Conditions | None = None
    failure: SlmExportError | None = None


def check_arguments(words: Sequence[str]) -> None:
    """Raises UsageError for a `$NAME` that stands for nothing."""
    known = ", ".join(f"${name}" for name in PLACEHOLDERS)
    for word in words:
        if not Template(word).is_valid():
            raise UsageError(
                f"--runner-arguments: {word!r} has a $ that begins no name", f"write $$, or one of {known}"
            )
        for name in Template(word).get_identifiers():
            if name not in PLACEHOLDERS:
                raise UsageError(f"--runner-arguments: ${name} stands for nothing", f"use {known}")


def measure_official(device: Device, job: OfficialJob) -> OfficialMeasurement:
    """Runs a job. Never raises for what the device or the tool does: a failure is part of the measurement."""
    found, end = OfficialMeasurement(device, job), time.monotonic() + job.time_limit_s
    try:
        placed = device.place(job.artifact, job.names, job.runner)
        with Watch(device.shell) as watch:
            try:
                for prompt in job.prompts:
                    _run_prompt(found, placed, prompt, end)
            except SlmExportError as fault:
                found.failure = fault
        found.conditions = watch.conditions()
    except SlmExportError as fault:
        found.failure = fault
    finally:
        device.clean_up()
    return found


def _run_prompt(found: OfficialMeasurement, placed: Placed, prompt: Prompt, end: float) -> None:
    job = found.job
    words = command_words(job, placed, prompt)
    found.commands.append(shlex.join(words))
    figures: list[OfficialFigures] = []
    found.figures.append(figures)
    for run in range(job.runs):
        read = _run_once(found.device, job, words, end)
        if job.repeats_itself or run >= job.warm_up:
            figures.append(read)


def command_words(job: OfficialJob, placed: Placed, prompt: Prompt) -> list[str]:
    """What is started on the device."""
    values: Mapping[str, object] = {
        "ARTIFACT": placed.artifact,
        "RUNNER": placed.runner,
        "PROMPT": prompt.text,
        "PROMPT_TOKENS": prompt.tokens,
        "GENERATE": job.generated_tokens,
        "TOTAL": prompt.tokens + job.generated_tokens,
        "WARM_UP": job.warm_up,
        "REPETITIONS": job.repetitions,
    }
    program = [word.replace("$RUNNER", placed.runner) for word in job.runner.words]
    return [*program, *(Template(word).substitute(values) for word in job.arguments)]


def _run_once(device: Device, job: OfficialJob, words: Sequence[str], end: float) -> OfficialFigures:
    command = device.command(words)
    done = run_program(command.words, max(0.1, end - time.monotonic()), environment=command.environment)
    with job.log.open("a", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(words)}\n{done.output}\n{done.errors}\nexit status {done.status}\n")
    where, step = f"{device.name}: {job.tool.name}", f"see {job.log}"
    if not done.ok:
        raise _failure(device, where, done, job, step)
    try:
        return job.tool.read(done.output)
    except ValueError as fault:
        raise ChildFailed(
            f"{where} printed what its parser does not know ({' '.join(str(fault).split())})", step
        ) from None


def _failure(device: Device, where: str, done: Finished, job: OfficialJob, step: str) -> SlmExportError:
    if not device.answers():
        return ToolchainMissing(
            f"{where}: the device no longer answers ({done.reason})", "attach it again; see: slm-export devices"
        )
    if done.status is None:
        return ToolchainMissing(
            f"{where} did not end within {job.time_limit_s:.0f} s", f"raise --time-limit, or {step}"
        )
    return ChildFailed(f"{where} ended with {done.reason}", step)
