"""Operators of a token from the profile that ONNX Runtime writes: a list of events in the order in which they ended."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporter.child import Emit
from exporter.profile.recording import Recording, by_operator, timed_tokens, warm_up

KERNEL = "_kernel_time"
RUN = "model_run"
Event = dict[str, Any]


def record_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """See `recording.Profiler`."""
    from exporter.targets.onnx.driver import open_driver, open_traced

    folder, token_ids = Path(arguments["folder"]), arguments["token_ids"]
    span = arguments["position"], arguments["tokens"]
    driver = open_driver(folder)
    warm_up(driver, token_ids)
    times = timed_tokens(driver, token_ids, *span)
    driver, session = open_traced(folder, Path(arguments["scratch"]) / "trace")
    warm_up(driver, token_ids)
    traced = timed_tokens(driver, token_ids, *span)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    tokens = token_events(events, len(traced))
    return asdict(Recording(driver.engine, driver.threads, times, traced, by_operator(tokens)))


def token_events(events: list[Event], count: int) -> list[list[tuple[str, float]]]:
    """Operators with milliseconds of each of the last `count` runs."""
    runs = [event for event in events if event.get("name") == RUN][-count:]
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(KERNEL)]
    return [
        [(kernel["args"]["op_name"], kernel["dur"] / 1e3) for kernel in kernels if _inside(kernel, run)] for run in runs
    ]


def _inside(event: Event, run: Event) -> bool:
    return bool(run["ts"] <= event["ts"] < run["ts"] + run["dur"])
