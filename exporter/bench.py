"""`slm-export bench`: an export on devices, its token ids against the oracle's, and the `latency` section of its report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_tests.devices.base import Device, DeviceKind, RunnerFiles, device_kinds, find_device
from device_tests.harness import Job, Measurement, measure
from device_tests.protocol import RunnerRequest
from exporter.checkpoint.checkpoint import COMPANION_FILES
from exporter.errors import GateFailed, PlanRefused, SlmExportError, ToolchainMissing, UsageError
from exporter.manifest import REPORT_FILE, check_integrity, exported_recipe, read_manifest
from exporter.progress import StageDisplay
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized
from exporter.report.html import write_html
from exporter.report.latency import TokenCheck, latency_section
from exporter.targets.base import VERIFICATION_FOLDER, Obtained, Target, find_target
from exporter.verify.evaluation import EvaluationSet
from exporter.verify.greedy import GreedyReference, clear_reference, near_ties_followed

DEFAULT_PROMPTS = (32, 256)
MEMORY_PROBE_BYTES = 256_000_000
"""Larger than the caches of any processor that a phone or laptop has."""
LARGEST_PROBE_BYTES = 512_000_000
ORACLE = "greedy decoding by the oracle of the verification folder"


@dataclass(frozen=True)
class BenchRequest:
    """What a user asked for. `prompt_tokens` empty means two lengths that fit the context."""

    folder: Path
    devices: tuple[str, ...] = ("local",)
    prompt_tokens: tuple[int, ...] = ()
    generated_tokens: int = 64
    warm_up: int = 1
    repetitions: int = 5
    runners: tuple[str, ...] = ()
    """`FOLDER` for every device, or `DEVICE=FOLDER` for one or for a kind."""
    time_limit_s: float = 600.0
    accept_near_ties: bool = False


def bench(request: BenchRequest, display: StageDisplay) -> list[dict[str, Any]]:
    """Measures on every device and writes the sections into the export's report: the first device's as `latency`, all as
    `latency_devices`. Raises GateFailed where token ids differ and ToolchainMissing where a device is lost, after writing what there is.
    """
    with display.stage("integrity") as stage:
        manifest = read_manifest(request.folder)
        stage.note = f"{check_integrity(request.folder, manifest)} files match the manifest"
    target = find_target(exported_recipe(request.folder, manifest).target.kind)
    devices = ready_devices(request, target)
    report = read_report(request.folder)
    with display.stage("reference") as stage:
        decoder = load_quantized(request.folder / VERIFICATION_FOLDER)
        references = _references(request, decoder)
        stage.note = f"prompts of {', '.join(str(len(item.prompt)) for item in references)} tokens by the oracle"
    bytes_per_token = int(report["plan"]["bytes_read_per_token"])
    measurements = _measure_all(request, manifest, devices, references, bytes_per_token, display)
    sections, faults = [], []
    for measurement in measurements:
        section, fault = _judge(request, decoder, references, measurement, bytes_per_token)
        sections.append(section)
        faults += [fault] if fault else []
    write(request.folder, {**report, "latency": sections[0], "latency_devices": sections})
    if faults:
        raise worst(faults)
    return sections


def ready_devices(request: BenchRequest, target: Target) -> list[tuple[Device, RunnerFiles]]:
    """Every device with its runner. Raises PlanRefused, UsageError or ToolchainMissing naming all that is wrong, before any work."""
    return [(device, _runner(request, target, kind, device)) for kind, device in ready(request)]


def ready(request: BenchRequest) -> list[tuple[DeviceKind, Device]]:
    """Every device that is named. Raises UsageError for a runner of no device, and ToolchainMissing where a device lacks something."""
    named = [find_device(text) for text in dict.fromkeys(request.devices)]
    problems = {device.name: device.lacks() for _, device in named}
    known = {name for device in problems for name in (device, device.partition(":")[0])}
    for text in request.runners:
        if "=" in text and text.partition("=")[0] not in known:
            raise UsageError(f"--runner {text}: no --device {text.partition('=')[0]} is named", "write DEVICE=FOLDER")
    missing = [f"{name}: {problem}" for name, problem in problems.items() if problem]
    if missing:
        raise ToolchainMissing("; ".join(missing), "see: slm-export devices")
    return named


def list_devices() -> list[dict[str, Any]]:
    """Every device that can be found, and what each lacks."""
    kinds = device_kinds()
    found = [(name, device) for name in kinds for device in kinds.get(name).attached()]
    problems = [(kind, device, device.lacks()) for kind, device in found]
    return [
        {"device": device.name, "kind": kind, "ready": problem is None, "lacks": problem}
        for kind, device, problem in problems
    ]


def chosen_runner(runners: Sequence[str], device: str) -> Path | None:
    """The folder for a device: named for it, for its kind, or for all."""
    kind, _, _ = device.partition(":")
    named = {text.partition("=")[0]: text.partition("=")[2] for text in runners if "=" in text}
    common = [text for text in runners if "=" not in text]
    folder = named.get(device) or named.get(kind) or (common[-1] if common else None)
    return None if folder is None else Path(folder)


def _runner(request: BenchRequest, target: Target, kind: DeviceKind, device: Device) -> RunnerFiles:
    folder = chosen_runner(request.runners, device.name)
    if folder is not None:
        return runner_files(folder, f"{target.runtime}_runner")
    if kind.needs_runner:
        raise UsageError(
            f"--device {device.name} needs a runner",
            "build one (docs/guides/measure-latency.md) and pass --runner FOLDER",
        )
    if target.obtained is not Obtained.MEASURED:
        what = "nothing here runs" if target.obtained is Obtained.GRAPH else "this machine can only simulate"
        raise PlanRefused(
            f"{target.runtime} on {device.name}: {what} the artifact, and another program's time is no latency",
            "measure on a device: slm-export devices",
        )
    return RunnerFiles((sys.executable, "-m", "device_tests.python_runner"), (), target.driver)


def runner_files(path: Path, name: str) -> RunnerFiles:
    """A folder with the runner and its libraries, or a single program. A folder that holds a loader brings its own C library."""
    program = path / name if path.is_dir() else path
    if not program.is_file():
        raise UsageError(f"--runner {path}: {program} is not there", "see docs/guides/measure-latency.md")
    files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [program]
    loader = next((item.name for item in files if item.name.startswith("ld-linux")), None)
    own = ("$RUNNER/" + program.name,)
    words = ("$RUNNER/" + loader, "--library-path", "$RUNNER", *own) if loader else own
    return RunnerFiles(words, tuple(files))


def _references(request: BenchRequest, decoder: QuantizedDecoder) -> list[GreedyReference]:
    lengths = request.prompt_tokens or default_lengths(decoder.context, request.generated_tokens)
    for length in lengths:
        if length + request.generated_tokens > decoder.context:
            raise UsageError(
                f"a prompt of {length} tokens and {request.generated_tokens} more do not fit the context of {decoder.context}",
                "lower --prompt-tokens or --generate",
            )
    windows = EvaluationSet.load(request.folder / VERIFICATION_FOLDER).windows
    text = [token for window in windows for token in window]
    if max(lengths) > len(text):
        raise UsageError(f"the evaluation text has {len(text)} tokens only", "lower --prompt-tokens")
    return [clear_reference(decoder, text, length, request.generated_tokens) for length in sorted(set(lengths))]


def default_lengths(context: int, generated: int) -> tuple[int, ...]:
    """A short and a long prompt, cut to what fits."""
    room = context - generated
    if room < 1:
        raise UsageError(f"{generated} generated tokens fill the context of {context}", "lower --generate")
    return tuple(sorted({min(length, room) for length in DEFAULT_PROMPTS}))


def _measure_all(
    request: BenchRequest,
    manifest: dict[str, Any],
    devices: Sequence[tuple[Device, RunnerFiles]],
    references: Sequence[GreedyReference],
    bytes_per_token: int,
    display: StageDisplay,
) -> list[Measurement]:
    """Devices of their own side by side; those that share this machine's processor one after another, once the others are done."""
    probes = (min(bytes_per_token, LARGEST_PROBE_BYTES), max(MEMORY_PROBE_BYTES, bytes_per_token // 4))
    names = tuple(name for name in manifest["outputs"] if "/" not in name and name not in COMPANION_FILES)
    told = RunnerRequest(
        "",
        tuple(item.prompt for item in references),
        request.generated_tokens,
        request.warm_up,
        request.repetitions,
        probes,
    )

    def run(device: Device, runner: RunnerFiles) -> Measurement:
        return measure(device, Job(request.folder, names, runner, told, request.time_limit_s))

    apart = [pair for pair in devices if not pair[0].on_this_host]
    with display.stage("measure") as stage:
        with ThreadPoolExecutor(max(1, len(apart))) as pool:
            done = {device.name: result for (device, _), result in zip(apart, pool.map(lambda pair: run(*pair), apart))}
        done |= {device.name: run(device, runner) for device, runner in devices if device.on_this_host}
        stage.note = ", ".join(done)
    return [done[device.name] for device, _ in devices]


def _judge(
    request: BenchRequest,
    decoder: QuantizedDecoder,
    references: Sequence[GreedyReference],
    measurement: Measurement,
    bytes_per_token: int,
) -> tuple[dict[str, Any], SlmExportError | None]:
    """The section of one device, and the error that it ends with."""
    if measurement.failure is not None:
        return latency_section(measurement, bytes_per_token, None, None), measurement.failure
    check = check_tokens(decoder, references, measurement, request.accept_near_ties)
    if check.equal or check.near_ties:
        return latency_section(measurement, bytes_per_token, check, None), None
    void = f"{measurement.device.name}: {check.difference}, so its times mean nothing"
    fault = GateFailed(f"measurement void: {void}", "slm-export verify; or --accept-near-ties where it says near-tie")
    return latency_section(measurement, bytes_per_token, check, void), fault


def check_tokens(
    decoder: QuantizedDecoder, references: Sequence[GreedyReference], measurement: Measurement, accept_near_ties: bool
) -> TokenCheck:
    """Every repetition, warm-up included, of every prompt."""
    tokens, ties = 0, 0
    for item in measurement.heard.repetitions:
        reference = references[item.prompt]
        tokens += len(item.token_ids)
        at = reference.difference(item.token_ids)
        if at is None:
            continue
        followed = near_ties_followed(decoder, reference.prompt, item.token_ids)
        if followed is None or not accept_near_ties:
            kind = (
                ""
                if followed is None
                else f" (a near-tie: the oracle separates the two by {reference.margins[at]:.3f})"
            )
            where = f"token {at + 1} after the prompt of {len(reference.prompt)} differs from the oracle's{kind}"
            return TokenCheck(ORACLE, tokens, False, 0, where)
        ties += followed
    return TokenCheck(ORACLE, tokens, ties == 0, ties)


def worst(faults: list[SlmExportError]) -> SlmExportError:
    """One error for all devices: of the first kind, with every message."""
    first = faults[0]
    return type(first)(" | ".join(fault.message for fault in faults), first.next_step)


def read_report(folder: Path) -> dict[str, Any]:
    path = folder / REPORT_FILE
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        int(report["plan"]["bytes_read_per_token"]), int(report["plan"]["context"])
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UsageError(f"{path}: not the report of an export ({fault})", "export again") from None
    return report


def write(folder: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = folder / f".{REPORT_FILE}.{os.getpid()}"
    partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / REPORT_FILE)
    write_html(report, folder)
