"""Percentiles, distributions and the noise of a median."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_tests.statistics import Distribution, PromptFigures, Run, median_interval, percentile

SAMPLES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=200)


@given(SAMPLES, st.floats(0, 100))
def test_a_percentile_is_the_smallest_sample_that_so_many_do_not_exceed(samples: list[float], percent: float) -> None:
    found = percentile(samples, percent)
    assert found in samples
    assert sum(value <= found for value in samples) >= percent / 100 * len(samples) - 1e-9
    below = [value for value in samples if value < found]
    assert not below or len(below) < percent / 100 * len(samples) + 1e-9


def test_percentiles_of_one_to_a_hundred_are_their_numbers() -> None:
    found = Distribution.of([float(value) for value in range(1, 101)])
    assert (found.p50, found.p90, found.p99, found.count) == (50, 90, 99, 100)
    assert found.std == pytest.approx(statistics.stdev(range(1, 101)))


def test_p99_is_withheld_below_a_hundred_samples() -> None:
    assert Distribution.of([1.0] * 99).p99 is None
    assert Distribution.of([1.0] * 100).p99 == 1.0


def test_figures_pool_all_repetitions_and_keep_first_and_last_apart() -> None:
    found = PromptFigures.of(40, [Run(20.0, (1.0, 1.0)), Run(10.0, (2.0, 2.0)), Run(30.0, (4.0, 6.0))])
    assert (found.ttft_ms, found.prefill_tokens_per_s) == (20.0, 2000.0)
    assert found.decode_ms.count == 6
    assert found.decode_tokens_per_s == pytest.approx(6 / 16 * 1000)
    assert (found.first_decode_ms, found.last_decode_ms) == (1.0, 4.0)


def test_the_interval_of_a_median_holds_it_and_is_the_same_every_time() -> None:
    groups = [[5.0, 5.1, 5.2], [5.1, 5.3, 5.2], [4.9, 5.0, 5.4]]
    first, second = median_interval(groups), median_interval(groups)
    assert first == second
    assert first.low <= percentile([value for group in groups for value in group], 50) <= first.high
    assert first.overlaps(median_interval([[5.2, 5.2]]))
    assert not first.overlaps(median_interval([[9.0, 9.1], [9.0, 9.2]]))


def test_the_interval_is_as_wide_as_repetitions_differ() -> None:
    """Samples within a repetition are alike: counting them as independent would make noise look like a fact."""
    steady = median_interval([[5.0] * 50, [5.0] * 50, [5.0] * 50])
    drifting = median_interval([[4.0] * 50, [5.0] * 50, [6.0] * 50])
    single = median_interval([[4.0] * 30 + [5.0] * 30 + [6.0] * 30])
    assert steady.high - steady.low == single.high - single.low == 0
    assert drifting.high - drifting.low >= 1
