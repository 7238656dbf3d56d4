"""What the plan refuses of the Vulkan target, and what it remarks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_checkpoint import spec_of, tiny_config

from exporter.decoder.spec import DecoderSpec
from exporter.errors import PlanRefused
from exporter.plan import check_refusals, make_plan
from exporter.recipe import Recipe, load_recipe
from exporter.targets.base import find_target

TARGET = find_target("executorch-vulkan")


def spec(**given: object) -> DecoderSpec:
    """Of widths that groups of 32 divide."""
    return spec_of(tiny_config(hidden_size=64, intermediate_size=96, vocab_size=96, **given))


def recipe(*overrides: str) -> Recipe:
    return load_recipe("android-gpu", overrides)


REFUSED = [
    pytest.param(["weights.scale_format=bf16"], "fp16", id="bf16 scales"),
    pytest.param(["weights.group_size=16"], "multiples of 32", id="small groups"),
    pytest.param(["weights.embedding_bits=8"], "INT4 groups only", id="INT8 table"),
    pytest.param(["kv_cache.bits=8"], "no operator that packs codes", id="INT8 KV"),
    pytest.param(["kv_cache.bits=4"], "no operator that packs codes", id="INT4 KV"),
    pytest.param(["kv_cache.rotation=true"], "no codes", id="rotated floats"),
]


@pytest.mark.parametrize(("overrides", "reason"), REFUSED)
def test_a_refusal_names_a_reason_and_a_combination_that_works(overrides: list[str], reason: str) -> None:
    with pytest.raises(PlanRefused) as caught:
        check_refusals(spec(), recipe(*overrides), TARGET)
    found, _, offered = caught.value.message.partition("nearest that works: ")
    assert reason in found
    settings = [setting.strip() for setting in offered.split(";")[0].split("|")[0].split(",")]
    check_refusals(spec(), recipe(*overrides, *settings), TARGET)


def test_widths_and_rows_that_the_delegate_cannot_cut_are_refused() -> None:
    found = spec()
    layers = tuple(replace(layer, feed_forward=replace(layer.feed_forward, hidden_size=72)) for layer in found.layers)
    with pytest.raises(PlanRefused, match=r"has 72 inputs.*--recipe android-cpu"):
        check_refusals(replace(found, layers=layers), recipe(), TARGET)
    with pytest.raises(PlanRefused, match=r"the head has 95 rows.*multiples of 4"):
        check_refusals(replace(found, vocab_size=95), recipe(), TARGET)


def test_every_layer_has_a_slot_for_every_position_whatever_its_window() -> None:
    windowed = spec_of(tiny_config("mistral", sliding_window=21, hidden_size=64, intermediate_size=96, vocab_size=96))
    plan = make_plan(windowed, recipe("cache.context=64", "cache.chunk=3"), TARGET)
    assert set(plan.slots_per_layer) == {64}


@pytest.mark.parametrize(("bits", "floats"), [(16, "fp16"), (32, "float32")])
def test_the_plan_says_that_nothing_here_runs_the_artifact_and_how_the_gpu_computes(bits: int, floats: str) -> None:
    plan = make_plan(spec(), recipe(f"kv_cache.bits={bits}"), TARGET)
    assert any("not the artifact" in remark for remark in plan.remarks)
    assert any(f"computes everything in {floats}" in remark for remark in plan.remarks)
    attention = spec().layers[0].attention
    assert plan.kv_bytes_per_token == len(spec().layers) * 2 * attention.kv_heads * attention.head_dim * bits // 8
