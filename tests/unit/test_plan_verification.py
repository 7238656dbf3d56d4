"""The plan refuses a verification that would prove less than it says."""

from __future__ import annotations

import pytest

from exporter.errors import PlanRefused
from exporter.plan import plan_export
from exporter.recipe import load_recipe
from exporter.resources import example_folder


def refused(*overrides: str) -> str:
    with pytest.raises(PlanRefused) as caught:
        plan_export(example_folder() / "model", load_recipe("android-npu", overrides))
    return caught.value.message


def test_a_ring_that_verification_never_wraps_is_refused_with_the_window_that_does() -> None:
    message = refused("verify.window=95")
    assert "verify.window 95 never wraps a cache of 95 slots" in message
    assert "nearest that works: verify.window=96" in message
    plan_export(example_folder() / "model", load_recipe("android-npu", ("verify.window=96",)))


def test_layers_that_hold_the_whole_context_need_not_wrap() -> None:
    plan_export(example_folder() / "model", load_recipe("android-npu", ("cache.context=64", "verify.window=64")))


def test_activation_tokens_are_part_of_the_calibration_tokens() -> None:
    message = refused("calibration.tokens=1024")
    assert "calibration.activation_tokens 2048 are part of calibration.tokens" in message
    assert "nearest that works: calibration.activation_tokens=1024" in message
