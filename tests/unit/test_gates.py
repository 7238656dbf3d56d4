"""Gates: which values pass, what a failure says, and how perplexities are compared."""

from __future__ import annotations

import math

import pytest

from exporter.errors import ExitCode, GateFailed
from exporter.pipeline import gate_step
from exporter.verify.gates import Gate, percent_rise, require


@pytest.mark.parametrize(("value", "passed"), [(0.0, True), (0.5, True), (0.5000001, False), (math.inf, False)])
def test_a_value_may_reach_but_not_exceed_an_upper_limit(value: float, passed: bool) -> None:
    assert Gate("kl", value, 0.5).passed is passed


@pytest.mark.parametrize(("value", "passed"), [(1.0, True), (0.98, True), (0.9799999, False), (-math.inf, False)])
def test_a_value_may_reach_but_not_undercut_a_lower_limit(value: float, passed: bool) -> None:
    assert Gate("top-1", value, 0.98, smallest=True).passed is passed


@pytest.mark.parametrize("smallest", [True, False])
def test_a_value_that_is_no_number_never_passes(smallest: bool) -> None:
    assert not Gate("kl", math.nan, 0.5, smallest).passed


@pytest.mark.parametrize("smallest", [True, False])
def test_a_gate_without_a_limit_passes_and_says_that_it_is_off(smallest: bool) -> None:
    gate = Gate("kl", 17.0, None, smallest)
    assert gate.passed
    assert str(gate) == "kl 17 (gate off)"


NEXT = "do something else"


def test_a_gate_prints_value_and_limit() -> None:
    assert str(Gate("kl", 0.25, 0.5)) == "kl 0.25 (at most 0.5)"
    assert str(Gate("top-1", 0.25, 0.98, smallest=True)) == "top-1 0.25 (at least 0.98)"


def test_require_accepts_gates_that_pass() -> None:
    assert require([], NEXT) is None
    assert require([Gate("kl", 0.1, 0.5), Gate("off", 9.0, None)], NEXT) is None


def test_one_failed_gate_is_named_with_value_and_limit() -> None:
    with pytest.raises(GateFailed) as caught:
        require([Gate("kl", 0.75, 0.5), Gate("top-1", 0.99, 0.98, smallest=True)], NEXT)
    assert caught.value.exit_code == ExitCode.GATE_FAILED
    assert caught.value.message == "1 gate failed: kl 0.75 (at most 0.5)"
    assert caught.value.next_step == NEXT


def test_every_failed_gate_is_named() -> None:
    with pytest.raises(GateFailed) as caught:
        require([Gate("a", 2.0, 1.0), Gate("fine", 0.0, 1.0), Gate("b", 0.0, 1.0, smallest=True)], NEXT)
    assert caught.value.message == "2 gates failed: a 2 (at most 1); b 0 (at least 1)"


@pytest.mark.parametrize(("value", "reference", "percent"), [(11.0, 10.0, 10.0), (10.0, 10.0, 0.0), (9.0, 10.0, -10.0)])
def test_percent_rise(value: float, reference: float, percent: float) -> None:
    assert percent_rise(value, reference) == pytest.approx(percent)


def test_after_a_missed_gate_the_recipe_for_small_models_is_offered_where_there_is_one() -> None:
    assert "--recipe onnx-cpu-small" in gate_step("onnx-cpu")
    assert not any("--recipe" in gate_step(name) for name in ("onnx-cpu-small", "ios", "a-recipe-of-my-own"))
