"""What an engine says of its tokens, the same for all of them, and which engine says it of a target's artifacts."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.registry import Registry
from exporter.runtime.driver import Driver

WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class OperatorTime:
    """All calls of one kind of operator in a token: how many, and milliseconds together."""

    name: str
    calls: int
    ms: float


@dataclass(frozen=True)
class Recording:
    """Milliseconds of each token without tracing and with it, and where the traced ones went. `operators` are medians over the tokens."""

    engine: str
    threads: int
    token_ms: list[float]
    traced_ms: list[float]
    operators: list[OperatorTime]


@dataclass(frozen=True)
class Profiler:
    """How an engine is asked. `function` is `module:function(arguments, emit)`, called in a child process: it gets folder, token_ids,
    position, tokens and scratch (a folder for the engine's own file), and returns a Recording as JSON."""

    function: str
    source: str
    """What the figures are read from, and what it leaves out."""


PROFILERS: Registry[Profiler] = Registry("profiler")
"""By target."""

PROFILERS.add(
    "executorch-xnnpack",
    Profiler("exporter.profile.etdump:record_in_child", "ExecuTorch's ETDump; XNNPACK counts whole microseconds"),
)
PROFILERS.add(
    "onnxruntime-cpu",
    Profiler("exporter.profile.onnx_trace:record_in_child", "ONNX Runtime's profile, in whole microseconds"),
)


def warm_up(driver: Driver, token_ids: Sequence[int]) -> None:
    """A few tokens from an empty cache, and an empty cache again."""
    driver.reset()
    for token_id in token_ids[: min(WARM_UP_TOKENS, driver.context)]:
        driver.decode(token_id)
    driver.reset()


def timed_tokens(driver: Driver, token_ids: Sequence[int], position: int, count: int) -> list[float]:
    """Fills the cache with `position` tokens, then milliseconds of each of `count` more, one by one."""
    driver.reset()
    if position:
        driver.prompt(list(token_ids[:position]))
    stamps = [time.perf_counter_ns()]
    for token_id in token_ids[position : position + count]:
        driver.decode(token_id)
        stamps.append(time.perf_counter_ns())
    return [(later - earlier) / 1e6 for earlier, later in itertools.pairwise(stamps)]


def by_operator(tokens: Sequence[Sequence[tuple[str, float]]]) -> list[OperatorTime]:
    """Operators with milliseconds in the order of execution, for each token -> sums per name, medians over the tokens, longest first."""
    names = dict.fromkeys(name for token in tokens for name, _ in token)
    found = []
    for name in names:
        sums = [sum(ms for other, ms in token if other == name) for token in tokens]
        calls = [sum(other == name for other, _ in token) for token in tokens]
        found.append(OperatorTime(name, int(statistics.median(calls)), statistics.median(sums)))
    return sorted(found, key=lambda operator: -operator.ms)
