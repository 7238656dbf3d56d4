"""What the plan refuses of the ONNX target, and the slots that GroupQueryAttention takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_checkpoint import spec_of, tiny_config

from exporter.errors import PlanRefused
from exporter.plan import check_refusals, make_plan
from exporter.recipe import Recipe, load_recipe
from exporter.targets.base import find_target

ONNX = find_target("onnxruntime-cpu")
GQA = "onnx.attention=gqa"


def recipe(*overrides: str) -> Recipe:
    return load_recipe("onnx-cpu", overrides)


REFUSED = [
    pytest.param(["kv_cache.bits=32"], "float32 cache", "kv_cache.bits=16", id="float32 rings"),
    pytest.param(
        ["kv_cache.bits=16", "kv_cache.rotation=true"], "no codes", "kv_cache.rotation=false", id="rotated fp16"
    ),
    pytest.param([GQA, "kv_cache.zero_point=true"], "static scales", "kv_cache.zero_point=false", id="zero point"),
    pytest.param([GQA, "kv_cache.rotation=true"], "static scales", "kv_cache.rotation=false", id="rotation"),
    pytest.param([GQA, "cache.window=64", "cache.sinks=4"], "no sink tokens", "onnx.attention=integer", id="sinks"),
    pytest.param([GQA, "onnx.attention_terms=2"], "no terms", "onnx.attention_terms=1", id="terms"),
]


@pytest.mark.parametrize(("overrides", "reason", "nearest"), REFUSED)
def test_a_refusal_names_a_reason_and_a_combination_that_works(overrides: list[str], reason: str, nearest: str) -> None:
    spec = spec_of(tiny_config())
    with pytest.raises(PlanRefused) as caught:
        check_refusals(spec, recipe(*overrides), ONNX)
    found, _, offered = caught.value.message.partition("nearest that works: ")
    assert reason in found
    assert nearest in offered
    settings = [setting.strip() for setting in offered.split(";")[0].split(",")]
    check_refusals(spec, recipe(*overrides, *settings), ONNX)


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_grouped_query_attention_takes_every_cache(bits: int) -> None:
    check_refusals(spec_of(tiny_config()), recipe(GQA, f"kv_cache.bits={bits}"), ONNX)


@pytest.mark.parametrize("context", [300, 100_000])
def test_grouped_query_attention_has_a_slot_for_every_token_in_every_layer(context: int) -> None:
    spec = spec_of(tiny_config("mistral", sliding_window=64))
    wanted = min(context, spec.context_limit)
    settings = (f"cache.context={context}", "cache.window=32")
    assert set(make_plan(spec, recipe(GQA, *settings), ONNX).slots_per_layer) == {wanted}
    assert max(make_plan(spec, recipe(*settings), ONNX).slots_per_layer) < wanted


def test_heads_that_the_operator_cannot_cut_are_refused() -> None:
    spec = spec_of(tiny_config())
    layers = tuple(replace(layer, attention=replace(layer.attention, head_dim=12)) for layer in spec.layers)
    with pytest.raises(PlanRefused, match=r"multiple of 8 channels; .*: onnx\.attention=integer"):
        check_refusals(replace(spec, layers=layers), recipe(GQA), ONNX)
    check_refusals(replace(spec, layers=layers), recipe(), ONNX)


@pytest.mark.parametrize("change", [{"score_cap": 50.0}, {"distance_slopes": (0.5, 0.25, 0.125, 0.0625)}])
def test_grouped_query_attention_gets_no_scores_that_it_would_not_shape(change: dict) -> None:
    spec = spec_of(tiny_config())
    layers = tuple(replace(layer, attention=replace(layer.attention, **change)) for layer in spec.layers)
    with pytest.raises(PlanRefused, match="GroupQueryAttention"):
        check_refusals(replace(spec, layers=layers), recipe(GQA), ONNX)
    check_refusals(replace(spec, layers=layers), recipe(), ONNX)
