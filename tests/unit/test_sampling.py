"""Sampling: greedy, temperature, top-k, top-p, seeds, and refused options."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import UsageError
from exporter.runtime.sampling import Sampler, SamplingSettings

LOGITS = np.array([1.0, 3.0, -2.0, 2.5, 0.0, 2.9], np.float32)
logits_lists = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12)


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    return weights / weights.sum()


def draws(settings: SamplingSettings, logits: np.ndarray, count: int) -> list[int]:
    sampler = Sampler(settings)
    return [sampler.pick(logits) for _ in range(count)]


@given(logits_lists)
@examples(100)
def test_temperature_zero_picks_the_first_of_the_largest(values: list[float]) -> None:
    assert Sampler(SamplingSettings()).pick(np.array(values, np.float32)) == values.index(max(values))


def test_greedy_ignores_top_k_top_p_and_seed() -> None:
    assert draws(SamplingSettings(0.0, top_k=3, top_p=0.1, seed=9), LOGITS, 5) == [1] * 5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_frequencies_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    counts = np.bincount(draws(SamplingSettings(temperature), LOGITS, 4000), minlength=len(LOGITS))
    assert np.abs(counts / 4000 - softmax(LOGITS, temperature)).max() < 0.03


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    assert set(draws(SamplingSettings(1e-3), LOGITS, 200)) == {1}


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_top_k_keeps_exactly_the_k_most_likely(top_k: int) -> None:
    expected = set(np.argsort(-LOGITS)[:top_k].tolist())
    assert set(draws(SamplingSettings(2.0, top_k=top_k), LOGITS, 600)) == expected


@pytest.mark.parametrize("top_k", [0, len(LOGITS), 1000])
def test_top_k_of_zero_or_beyond_the_vocabulary_keeps_every_token(top_k: int) -> None:
    assert set(draws(SamplingSettings(5.0, top_k=top_k), LOGITS, 600)) == set(range(len(LOGITS)))


@given(values=logits_lists, top_p=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
@examples(150)
def test_top_p_picks_from_the_smallest_set_that_holds_the_mass(values: list[float], top_p: float, seed: int) -> None:
    logits = np.array(values, np.float32)
    chosen = Sampler(SamplingSettings(1.0, top_p=top_p, seed=seed)).pick(logits)
    weights = softmax(logits, 1.0)
    ahead = weights[logits > logits[chosen]].sum() + weights[:chosen][logits[:chosen] == logits[chosen]].sum()
    assert ahead < top_p + 1e-12


def test_top_p_keeps_every_token_of_its_set() -> None:
    weights = softmax(LOGITS, 1.0)
    order = np.argsort(-LOGITS)
    top_p = float(weights[order[:3]].sum()) - 1e-6
    assert set(draws(SamplingSettings(1.0, top_p=top_p), LOGITS, 400)) == set(order[:3].tolist())


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert set(draws(SamplingSettings(1.0, top_k=2, top_p=0.57), logits, 300)) == {0}
    assert set(draws(SamplingSettings(1.0, top_k=2, top_p=0.58), logits, 300)) == {0, 1}


def test_equal_seeds_give_equal_tokens_and_others_do_not() -> None:
    first, again, other = (draws(SamplingSettings(2.0, seed=seed), LOGITS, 40) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_tokens_that_are_ruled_out_are_never_picked() -> None:
    logits = np.array([0.0, -np.inf, 0.0], np.float32)
    assert set(draws(SamplingSettings(1.0), logits, 200)) == {0, 2}


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        (SamplingSettings(temperature=-0.1), "--temperature"),
        (SamplingSettings(temperature=math.nan), "--temperature"),
        (SamplingSettings(temperature=1.0, top_k=-1), "--top-k"),
        (SamplingSettings(temperature=1.0, top_p=0.0), "--top-p"),
        (SamplingSettings(temperature=1.0, top_p=1.01), "--top-p"),
        (SamplingSettings(temperature=1.0, top_p=math.nan), "--top-p"),
        (SamplingSettings(temperature=1.0, seed=-1), "--seed"),
    ],
    ids=["negative-temperature", "nan-temperature", "negative-top-k", "zero-top-p", "large-top-p", "nan-top-p", "seed"],
)
def test_options_out_of_range_are_refused_by_name(settings: SamplingSettings, option: str) -> None:
    with pytest.raises(UsageError, match=option):
        Sampler(settings)
