"""Figures of a measurement, as the report defines them.

Percentiles are nearest-rank over the pooled samples of all timed repetitions. A percentile that fewer samples than its rank needs
would be the largest sample under another name: p99 is withheld below 100.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SMALLEST_FOR_P99 = 100
BOOTSTRAP_ROUNDS = 1000

DEFINITIONS = {
    "ttft_ms": "start of prefill to the first token id, empty cache, median over repetitions",
    "prefill_tokens_per_s": "prompt tokens over ttft_ms",
    "decode_ms": "time between a token id and the next, pooled over repetitions; nearest-rank percentiles, p99 from 100 samples on",
    "decode_tokens_per_s": "decoded tokens over the sum of those times",
}


def percentile(samples: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest sample that at least `percent` of them do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


@dataclass(frozen=True)
class Distribution:
    """Of samples in one unit; `std` is the sample standard deviation."""

    p50: float
    p90: float
    p99: float | None
    mean: float
    std: float
    count: int

    @staticmethod
    def of(samples: Sequence[float]) -> Distribution:
        return Distribution(
            percentile(samples, 50),
            percentile(samples, 90),
            percentile(samples, 99) if len(samples) >= SMALLEST_FOR_P99 else None,
            statistics.fmean(samples),
            statistics.stdev(samples) if len(samples) > 1 else 0.0,
            len(samples),
        )


@dataclass(frozen=True)
class Run:
    """One timed repetition, in milliseconds."""

    ttft_ms: float
    decode_ms: tuple[float, ...]


@dataclass(frozen=True)
class PromptFigures:
    """Of all timed repetitions of one prompt. `first_decode_ms` and `last_decode_ms` are medians of the first and last repetition: a
    device that heats up ends slower than it began."""

    prompt_tokens: int
    ttft_ms: float
    prefill_tokens_per_s: float
    decode_ms: Distribution
    decode_tokens_per_s: float
    first_decode_ms: float
    last_decode_ms: float

    @staticmethod
    def of(prompt_tokens: int, runs: Sequence[Run]) -> PromptFigures:
        gaps = [gap for run in runs for gap in run.decode_ms]
        ttft_ms = percentile([run.ttft_ms for run in runs], 50)
        return PromptFigures(
            prompt_tokens,
            ttft_ms,
            prompt_tokens / ttft_ms * 1e3,
            Distribution.of(gaps),
            len(gaps) / sum(gaps) * 1e3,
            percentile(runs[0].decode_ms, 50),
            percentile(runs[-1].decode_ms, 50),
        )


@dataclass(frozen=True)
class Interval:
    """Where a figure lies, given the noise of its samples."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


def median_interval(groups: Sequence[Sequence[float]], confidence: float = 0.95, seed: int = 0) -> Interval:
    """Bootstrap interval of the median (Efron 1979), in two stages: repetitions are drawn, then samples within each, since those of one
    repetition share its clock and temperature."""
    drawn, source = random.Random(seed), [list(group) for group in groups if group]
    medians = []
    for _ in range(BOOTSTRAP_ROUNDS):
        picked = [
            sample for group in drawn.choices(source, k=len(source)) for sample in drawn.choices(group, k=len(group))
        ]
        medians.append(percentile(picked, 50))
    tail = 100 * (1 - confidence) / 2
    return Interval(percentile(medians, tail), percentile(medians, 100 - tail))
