"""What the plan refuses of the ExecuTorch CPU target, and what it remarks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_checkpoint import spec_of, tiny_config

from exporter.checkpoint.family import all_families
from exporter.decoder.spec import DecoderSpec
from exporter.errors import PlanRefused
from exporter.plan import check_refusals, make_plan
from exporter.recipe import Recipe, load_recipe
from exporter.targets.base import find_target

TARGET = find_target("executorch-xnnpack")
SMALL = ("executorch.activation_bits=32",)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("android-cpu", (*SMALL, *overrides))


def with_heads_of(spec: DecoderSpec, width: int) -> DecoderSpec:
    layers = tuple(replace(layer, attention=replace(layer.attention, head_dim=width)) for layer in spec.layers)
    return replace(spec, layers=layers)


REFUSED = [
    pytest.param(["weights.scale_format=fp16"], "bf16 scales", id="fp16 scales"),
    pytest.param(["weights.group_size=16", "executorch.activation_bits=8"], "multiples of 32", id="small groups"),
    pytest.param(["executorch.operators=plain"], "operator of this project", id="float products in plain operators"),
    pytest.param(["kv_cache.bits=32", "kv_cache.rotation=true"], "no codes", id="rotated floats"),
]


@pytest.mark.parametrize(("overrides", "reason"), REFUSED)
def test_a_refusal_names_a_reason_and_a_combination_that_works(overrides: list[str], reason: str) -> None:
    spec = replace(spec_of(tiny_config()))
    with pytest.raises(PlanRefused) as caught:
        check_refusals(spec, recipe(*overrides), TARGET)
    found, _, offered = caught.value.message.partition("nearest that works: ")
    assert reason in found
    settings = [setting.strip() for setting in offered.split(";")[0].split("|")[0].split(",")]
    remaining = [
        refusal for refusal in TARGET.refusals(spec, recipe(*overrides, *settings)) if reason in refusal.reason
    ]
    assert not remaining


def test_inputs_that_groups_do_not_divide_are_refused_for_xnnpack_alone() -> None:
    spec = spec_of(tiny_config())
    spec = replace(
        spec,
        layers=tuple(replace(layer, feed_forward=replace(layer.feed_forward, hidden_size=72)) for layer in spec.layers),
    )
    with pytest.raises(PlanRefused, match=r"has 72 inputs.*executorch\.activation_bits=32"):
        check_refusals(spec, recipe("executorch.activation_bits=8"), TARGET)
    check_refusals(spec, recipe(), TARGET)


def test_heads_that_packed_caches_cannot_cut_are_refused() -> None:
    spec = with_heads_of(spec_of(tiny_config()), 12)
    with pytest.raises(PlanRefused, match=r"8 channels, and a head has 12; .*executorch\.operators=plain"):
        check_refusals(spec, recipe(), TARGET)
    check_refusals(spec, recipe("kv_cache.bits=32"), TARGET)


def test_packed_caches_have_slots_in_blocks_and_float_ones_have_not() -> None:
    spec = spec_of(tiny_config("mistral", sliding_window=21))
    assert set(make_plan(spec, recipe("cache.chunk=3"), TARGET).slots_per_layer) == {32}
    assert set(make_plan(spec, recipe("cache.chunk=3", "kv_cache.bits=32"), TARGET).slots_per_layer) == {23}


@pytest.mark.parametrize("family", ["mamba", "mixtral"])
def test_recurrences_and_experts_call_operators_whatever_the_cache(family: str) -> None:
    spec = all_families().get(family).published_spec()
    remarks = TARGET.remarks(spec, recipe("kv_cache.bits=32", "executorch.activation_bits=8"))
    assert any("operators of this project" in remark for remark in remarks)


def test_without_a_compiler_the_plan_says_what_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = recipe("kv_cache.bits=32", "executorch.activation_bits=8")
    assert TARGET.remarks(spec_of(tiny_config()), plain) == []
    monkeypatch.setenv("CXX", "no-such-compiler")
    remarks = make_plan(spec_of(tiny_config()), recipe(), TARGET).remarks
    assert any("executorch.operators=plain" in remark for remark in remarks)
