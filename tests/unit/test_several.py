"""Several recipes in one run share one quantized checkpoint, or are refused with the values that differ."""

from __future__ import annotations

import pytest

from exporter.errors import ExitCode, PlanRefused
from exporter.recipe import load_recipe
from exporter.several import check_shared


def refused(*recipes: tuple[str, tuple[str, ...]]) -> PlanRefused:
    with pytest.raises(PlanRefused) as caught:
        check_shared([load_recipe(name, overrides) for name, overrides in recipes])
    assert caught.value.exit_code == ExitCode.REFUSED
    return caught.value


def test_shipped_recipes_of_one_size_share_their_weights() -> None:
    check_shared([load_recipe("onnx-cpu"), load_recipe("android-npu")])
    check_shared([load_recipe("onnx-cpu-small"), load_recipe("android-npu-small")])


def test_other_weights_are_refused_by_name_and_value() -> None:
    fault = refused(("onnx-cpu", ()), ("android-npu-small", ()))
    assert "weights.group_size 32 and 16, weights.embedding_bits 4 and 8" in fault.message
    assert "--set" in fault.next_step


def test_other_evaluation_tokens_are_refused() -> None:
    assert "verify.windows 4 and 2" in refused(("onnx-cpu", ()), ("android-npu", ("verify.windows=2",))).message


def test_a_recipe_given_twice_is_refused() -> None:
    assert "given twice" in refused(("onnx-cpu", ()), ("onnx-cpu", ())).message
