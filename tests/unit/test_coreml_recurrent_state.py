"""States of recurrent layers in fp16: what two numbers hold, and what a sum that fades slowly makes of their rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.decoder.recurrence import CONVOLUTION, SCAN, StateSpec
from exporter.targets.coreml.recurrent_state import FINE_SCALE, HeldState, adopt_states, held_bytes, is_recurrent

STEPS, RATE = 2048, 1e-3


def half(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.float16).astype(np.float32)


def pair(numbers: np.ndarray) -> np.ndarray:
    coarse = half(numbers)
    return coarse + half((numbers - coarse) * np.float32(FINE_SCALE)) / np.float32(FINE_SCALE)


def unrounded(numbers: np.ndarray) -> np.ndarray:
    return numbers


def error_of(held: Callable[[np.ndarray], np.ndarray], computed: Callable[[np.ndarray], np.ndarray]) -> float:
    """Of sums that lose a thousandth of themselves per token, after 2048 tokens, against float64."""
    random, decay = np.random.default_rng(1), np.float32(np.exp(-RATE))
    exact, rounded = np.zeros(1024), np.zeros(1024, np.float32)
    for _ in range(STEPS):
        added = (RATE * (1 + random.standard_normal(1024))).astype(np.float32)
        exact = float(decay) * exact + added
        rounded = held(computed(computed(computed(decay) * rounded) + computed(added)))
    return float(np.sqrt(np.square(rounded - exact).mean() / np.square(exact).mean()))


def test_slow_sums_err_as_the_guide_says() -> None:
    assert error_of(half, unrounded) == pytest.approx(0.0035, rel=0.1)
    assert error_of(half, half) == pytest.approx(0.10, rel=0.1)
    assert error_of(pair, unrounded) < 2e-6


@given(st.lists(st.floats(-60000, 60000, width=32), min_size=6, max_size=6))
def test_an_adopted_sum_is_the_number_to_22_bits(numbers: list[float]) -> None:
    sums = np.array(numbers, np.float32).reshape(3, 2)
    held = {"layers_4_scan": np.zeros((3, 2), np.float32), "layers_4_scan_fine": np.zeros((3, 2), np.float32)}
    adopt_states(held, {"layers.4.scan": sums})
    assert (half(held["layers_4_scan"]) == held["layers_4_scan"]).all()
    restored = held["layers_4_scan"] + half(held["layers_4_scan_fine"]) / np.float32(FINE_SCALE)
    assert (np.abs(restored - sums) <= np.abs(sums) * 2.0**-22 + 2.0**-35).all()


def test_adopted_states_lie_as_the_package_has_them() -> None:
    sums = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    described = HeldState.of(0, StateSpec(SCAN, sums.shape), channels_first=False)
    held = {name: np.zeros(described.shape, np.float32) for name in described.names}
    adopt_states(held, {"layers.0.scan": sums})
    np.testing.assert_array_equal(held["layers_0_scan"][1, 2, 0], sums[1, 0, 2])


@pytest.mark.parametrize(("channels_first", "shape"), [(False, (1, 2, 7)), (True, (1, 2, 1, 7))])
def test_inputs_of_a_convolution_are_one_state_of_fp16(channels_first: bool, shape: tuple[int, ...]) -> None:
    state = StateSpec(CONVOLUTION, (2, 7))
    held = HeldState.of(3, state, channels_first)
    assert (held.names, held.shape, held_bytes(state)) == (("layers_3_convolution",), shape, 28)


def test_states_are_told_from_caches_by_their_names() -> None:
    recurrent = ("layers_0_scan", "layers_0_scan_fine", "layers.11.convolution", "layers.2.scan")
    caches = ("layers_0_keys", "layers_0_values_scale", "layers.1.keys", "layers.1.values.zero")
    assert [is_recurrent(name) for name in (*recurrent, *caches)] == [True] * 4 + [False] * 4
