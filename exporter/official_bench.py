"""`slm-export bench --parser NAME`: the tool of others on devices, and what it says of itself beside `latency` in the report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_tests.devices.base import Device, RunnerFiles
from device_tests.official import PARSERS, OfficialTool
from device_tests.official_run import OfficialJob, OfficialMeasurement, Prompt, check_arguments, measure_official
from exporter.bench import BenchRequest, chosen_runner, default_lengths, read_report, ready, runner_files, worst, write
from exporter.checkpoint.config import Config
from exporter.checkpoint.text import TextCodec
from exporter.errors import UsageError
from exporter.manifest import check_integrity, read_manifest
from exporter.progress import StageDisplay
from exporter.report.official import official_section
from exporter.stage_cache import StageCache, cache_root, content_key
from exporter.targets.base import VERIFICATION_FOLDER
from exporter.verify.evaluation import EvaluationSet


@dataclass(frozen=True)
class OfficialRequest:
    """`bench` has devices, runners and lengths; the tool's own arguments replace the usual ones, as a shell would cut them."""

    bench: BenchRequest
    parser: str
    arguments: str | None = None


def bench_official(request: OfficialRequest, display: StageDisplay) -> list[dict[str, Any]]:
    """Measures on every device, one after another, and writes the sections into the export's report as `official_latency`. Raises the
    fault of a device after writing what there is."""
    tool, arguments = PARSERS.get(request.parser), tool_arguments(request)
    devices = ready_tools(request, tool)
    with display.stage("integrity") as stage:
        manifest = read_manifest(request.bench.folder)
        stage.note = f"{check_integrity(request.bench.folder, manifest)} files match the manifest"
    report = read_report(request.bench.folder)
    prompts = _prompts(request.bench, int(report["plan"]["context"]))
    names = tuple(name for name in manifest["outputs"] if "/" not in name)
    found: list[OfficialMeasurement] = []
    with display.stage("measure") as stage:
        for device, runner in devices:
            job = _job(request.bench, tool, arguments, runner, names, prompts, _log(request, tool, device))
            found.append(measure_official(device, job))
        stage.note = ", ".join(device.name for device, _ in devices)
    sections = [official_section(item) for item in found]
    write(request.bench.folder, {**report, "official_latency": sections})
    faults = [item.failure for item in found if item.failure is not None]
    if faults:
        raise worst(faults)
    return sections


def tool_arguments(request: OfficialRequest) -> tuple[str, ...]:
    """Raises UsageError where they cannot be cut into words, hold an unknown name, or are missing."""
    usual = PARSERS.get(request.parser).arguments
    if request.arguments is None and usual is None:
        raise UsageError(
            f"--parser {request.parser}: it is no program that takes usual arguments",
            "pass --runner-arguments, or read its file: python -m device_tests.official",
        )
    if request.arguments is None:
        return usual or ()
    try:
        words = tuple(shlex.split(request.arguments))
    except ValueError as fault:
        raise UsageError(f"--runner-arguments: {str(fault).lower()}", "quote them as in a shell") from None
    check_arguments(words)
    return words


def ready_tools(request: OfficialRequest, tool: OfficialTool) -> list[tuple[Device, RunnerFiles]]:
    """Every device with the tool. Raises UsageError or ToolchainMissing naming what is wrong, before any work."""
    found = []
    for _, device in ready(request.bench):
        path = chosen_runner(request.bench.runners, device.name)
        if path is None:
            raise UsageError(
                f"--parser {tool.name}: no --runner for {device.name}", f"pass --runner with {tool.program}"
            )
        found.append((device, runner_files(path, tool.program)))
    return found


def _prompts(request: BenchRequest, context: int) -> tuple[Prompt, ...]:
    """The evaluation text from its start, as text: the tool has a tokenizer of its own."""
    lengths = request.prompt_tokens or default_lengths(context, request.generated_tokens)
    windows = EvaluationSet.load(request.folder / VERIFICATION_FOLDER).windows
    tokens = [token for window in windows for token in window]
    if max(lengths) > len(tokens):
        raise UsageError(f"the evaluation text has {len(tokens)} tokens only", "lower --prompt-tokens")
    config = Config.read(request.folder / "config.json")
    codec = TextCodec.read(request.folder, config, config.integer("vocab_size"))
    return tuple(Prompt(length, codec.decode(tokens[:length])) for length in sorted(set(lengths)))


def _log(request: OfficialRequest, tool: OfficialTool, device: Device) -> Path:
    key = {"official": str(request.bench.folder.resolve()), "tool": tool.name, "device": device.name}
    return StageCache(cache_root(), resume=True).logs(content_key(key)) / f"{tool.name}.log"


def _job(
    request: BenchRequest,
    tool: OfficialTool,
    arguments: Sequence[str],
    runner: RunnerFiles,
    names: tuple[str, ...],
    prompts: tuple[Prompt, ...],
    log: Path,
) -> OfficialJob:
    return OfficialJob(
        request.folder,
        names,
        runner,
        tool,
        tuple(arguments),
        prompts,
        request.generated_tokens,
        request.warm_up,
        request.repetitions,
        request.time_limit_s,
        log,
    )
