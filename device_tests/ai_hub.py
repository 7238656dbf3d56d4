"""Qualcomm AI Hub: graphs are profiled on a phone of theirs, one graph at a time.

Nothing there runs a conversation: no token ids come back, no host loop is timed. So this is no device of the harness, and what it says
becomes no `latency`: it is an estimate per graph, labelled so. The client is reached through a small protocol, so that tests have one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from exporter.errors import ToolchainMissing
from exporter.targets.base import Obtained

TOKEN_STEP = "get a token at the AI Hub site, then: qai-hub configure --api_token TOKEN"
CONFIGURATION_VARIABLE = "QAIHUB_CLIENT_INI"


class Client(Protocol):
    """The part of `qai_hub` that is used."""

    def Device(self, name: str) -> Any: ...

    def submit_compile_job(self, model: str, device: Any, input_specs: Mapping[str, Any], options: str) -> Any: ...

    def submit_profile_job(self, model: Any, device: Any) -> Any: ...


@dataclass(frozen=True)
class GraphEstimate:
    """One graph on one hosted phone: the service's own estimate and the runs that it is of."""

    graph: str
    device: str
    ms: float
    runs_ms: tuple[float, ...]
    peak_memory_bytes: int | None
    obtained: Obtained = Obtained.ESTIMATED
    label: str = "per-graph estimate: no sampling, no host loop, token ids not compared"


def lacks() -> str | None:
    """None when the client is installed and has a token."""
    if importlib.util.find_spec("qai_hub") is None:
        return f"the client is not installed; pip install qai-hub, then {TOKEN_STEP}"
    path = Path(os.environ.get(CONFIGURATION_VARIABLE, Path.home() / ".qai_hub" / "client.ini"))
    return None if path.is_file() else f"{path} is not there; {TOKEN_STEP}"


def installed_client() -> Client:
    """Raises ToolchainMissing when `lacks` says so."""
    problem = lacks()
    if problem is not None:
        raise ToolchainMissing(f"qai-hub: {problem}")
    client: Client = importlib.import_module("qai_hub")
    return client


def profile_graph(
    client: Client, graph: str, model: Path, device_name: str, input_shapes: Mapping[str, Any], options: str
) -> GraphEstimate:
    """Compiles and profiles one ONNX graph of fixed shapes. Raises ToolchainMissing when the service does not finish a job."""
    device = client.Device(device_name)
    compiled = _finished(
        client.submit_compile_job(str(model), device, input_specs=input_shapes, options=options), graph
    )
    job = _finished(client.submit_profile_job(compiled.get_target_model(), device), graph)
    return parse_profile(graph, device_name, job.download_profile())


def parse_profile(graph: str, device_name: str, profile: Mapping[str, Any]) -> GraphEstimate:
    """Times of the service are in microseconds."""
    try:
        summary = profile["execution_summary"]
        runs = tuple(float(value) / 1e3 for value in summary.get("all_inference_times") or ())
        peak = summary.get("estimated_inference_peak_memory")
        ms = float(summary["estimated_inference_time"]) / 1e3
    except (KeyError, TypeError, ValueError) as fault:
        raise ToolchainMissing(f"qai-hub: the profile of {graph} lacks {fault}", "update the client") from None
    return GraphEstimate(graph, device_name, ms, runs, None if peak is None else int(peak))


def _finished(job: Any, graph: str) -> Any:
    status = job.wait()
    if not getattr(status, "success", False):
        raise ToolchainMissing(
            f"qai-hub: {graph}: {getattr(status, 'message', status)}", "see the job on the AI Hub site"
        )
    return job
