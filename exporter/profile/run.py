"""`slm-export profile`: where the time of a token goes, and how fast its bytes are read compared with what the machine reads."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter

from device_tests.protocol import Probe
from exporter.child import Emit, run_child
from exporter.errors import PlanRefused, UsageError
from exporter.manifest import REPORT_FILE, check_integrity, exported_recipe, read_manifest
from exporter.profile.recording import PROFILERS, Profiler, Recording
from exporter.progress import StageDisplay
from exporter.stage_cache import StageCache, cache_root, content_key
from exporter.targets.base import VERIFICATION_FOLDER, Obtained, Target, find_target
from exporter.verify.evaluation import EvaluationSet

TIME_LIMIT_S = 1800.0
MEMORY_PROBE_BYTES = 256_000_000
"""Larger than the caches of any processor that a phone or laptop has."""
LARGEST_PROBE_BYTES = 512_000_000


@dataclass(frozen=True)
class ProfileRequest:
    """What a user asked for: `tokens` tokens one by one behind `position` tokens."""

    folder: Path
    position: int = 0
    tokens: int = 16


@dataclass(frozen=True)
class ReadBytes:
    """What a token at a position must read at least, by the plan."""

    weights: int
    kv_cache: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache


def profile(request: ProfileRequest, display: StageDisplay) -> dict[str, Any]:
    """Raises PlanRefused where no engine on this machine can say, UsageError where the tokens do not fit."""
    with display.stage("integrity") as stage:
        manifest = read_manifest(request.folder)
        stage.note = f"{check_integrity(request.folder, manifest)} files match the manifest"
    kind = exported_recipe(request.folder, manifest).target.kind
    profiler = find_profiler(kind, find_target(kind))
    plan = _read_plan(request.folder)
    token_ids = _tokens(request, int(plan["context"]))
    needed = read_bytes(plan, request.position + request.tokens // 2)
    with display.stage("profile") as stage:
        recording = _record(request, profiler, token_ids)
        stage.note = f"{request.tokens} tokens from position {request.position} on"
    with display.stage("bandwidth") as stage:
        rates = _read_rates(request, needed.total, recording.threads)
        stage.note = "reading a buffer of a token's bytes, and one larger than the caches"
    return {"source": profiler.source, "position": request.position, **summary(recording, needed, *rates)}


def find_profiler(kind: str, target: Target) -> Profiler:
    """Raises PlanRefused saying why there is no profile of a target's artifacts."""
    if kind in PROFILERS:
        return PROFILERS.get(kind)
    why = "no profiler reads its engine"
    if target.obtained is Obtained.SIMULATED:
        why = "this machine only simulates its artifact, and a simulator's time is no latency"
    elif target.obtained is Obtained.GRAPH:
        why = "no runtime on this machine runs its artifact"
    raise PlanRefused(f"{target.runtime} {target.backend} has no profile: {why}", "profile on a device, with its tools")


def read_bytes(plan: dict[str, Any], position: int) -> ReadBytes:
    """Of the section `plan` of a report: all weights, and of each layer the slots in use once the token at `position` is written."""
    layers = zip(plan["slots_per_layer"], plan["kv_bytes_per_layer"], strict=True)
    cache = sum(size * min(position + 1, slots) // slots for slots, size in layers)
    return ReadBytes(int(plan["bytes_read_per_token"]) - int(plan["kv_bytes_total"]), cache)


def summary(recording: Recording, needed: ReadBytes, token_gb_s: float, memory_gb_s: float) -> dict[str, Any]:
    """What is printed. GB are decimal; `effective` divides the bytes that a token must read by its time without tracing."""
    plain, traced = statistics.median(recording.token_ms), statistics.median(recording.traced_ms)
    inside = sum(operator.ms for operator in recording.operators)
    effective = needed.total / plain / 1e6
    return {
        "obtained": Obtained.MEASURED,
        "engine": recording.engine,
        "threads": recording.threads or None,
        "tokens": len(recording.token_ms),
        "ms_per_token": {"p50": plain, "min": min(recording.token_ms), "traced_p50": traced},
        "operators": [{**asdict(operator), "share": operator.ms / traced} for operator in recording.operators],
        "between_operators_ms": max(0.0, traced - inside),
        "bytes_per_token": {"obtained": Obtained.ESTIMATED, **asdict(needed), "total": needed.total},
        "read_gb_s": {
            "effective": effective,
            "buffer_of_token_bytes": token_gb_s,
            "memory": memory_gb_s,
            "effective_of_buffer": effective / token_gb_s,
        },
    }


def _read_plan(folder: Path) -> dict[str, Any]:
    path = folder / REPORT_FILE
    try:
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["plan"]
        read_bytes(plan, 0)
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise UsageError(f"{path}: not the report of an export ({fault})", "export again") from None
    return plan


def _tokens(request: ProfileRequest, context: int) -> list[int]:
    """The evaluation text, over and over: which tokens they are does not matter to the time."""
    count = request.position + request.tokens
    if count > context:
        reason = f"position {request.position} and {request.tokens} tokens do not fit the context of {context}"
        raise UsageError(reason, "lower --position or --tokens")
    windows = EvaluationSet.load(request.folder / VERIFICATION_FOLDER).windows
    return list(islice(cycle(token for window in windows for token in window), count))


def _record(request: ProfileRequest, profiler: Profiler, token_ids: list[int]) -> Recording:
    with TemporaryDirectory() as scratch:
        arguments = {
            "folder": str(request.folder),
            "token_ids": token_ids,
            "position": request.position,
            "tokens": request.tokens,
            "scratch": scratch,
        }
        found = run_child(profiler.function, arguments, _log(request), TIME_LIMIT_S)
    return TypeAdapter(Recording).validate_python(found)


def _read_rates(request: ProfileRequest, token_bytes: int, threads: int) -> tuple[float, float]:
    """Gigabytes per second at which this machine reads a buffer of a token's bytes, and one that no cache holds."""
    sizes = min(token_bytes, LARGEST_PROBE_BYTES), max(MEMORY_PROBE_BYTES, min(token_bytes, LARGEST_PROBE_BYTES))
    arguments = {"sizes": sizes, "threads": threads}
    found = run_child("exporter.profile.run:probe_in_child", arguments, _log(request), TIME_LIMIT_S)
    first, second = (float(rate) for rate in found["gb_s"])
    return first, second


def probe_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Bandwidths of buffers, GB/s. Arguments: sizes (bytes), threads (0: all)."""
    import os

    from device_tests.python_runner import read_probe

    threads = arguments["threads"] or len(os.sched_getaffinity(0))
    return {"gb_s": [gb_per_s(read_probe(size, threads)) for size in arguments["sizes"]]}


def gb_per_s(probe: Probe) -> float:
    """Decimal gigabytes per second, of the fastest reading, as in the section `latency` of a report."""
    return probe.bytes / min(probe.ns)


def _log(request: ProfileRequest) -> Path:
    logs = StageCache(cache_root(), resume=True).logs(content_key({"profile": str(request.folder.resolve())}))
    return logs / "profile.log"
