"""Every refusal of the plan: its reason, the nearest combination that works, and what is not refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_checkpoint import spec_of, tiny_config, write_config
from tiny_plans import QNN, recipe, refusal

from exporter.decoder.spec import DecoderSpec, LayerSpec, RotarySpec
from exporter.errors import PlanRefused, SlmExportError
from exporter.plan import check_refusals, plan_export, recipe_layout
from exporter.targets.base import find_target


def with_layer(spec: DecoderSpec, index: int, change: Callable[[LayerSpec], LayerSpec]) -> DecoderSpec:
    layers = list(spec.layers)
    layers[index] = change(layers[index])
    return replace(spec, layers=tuple(layers))


def offered_settings(message: str) -> list[str]:
    """The `--set` values of the nearest combination that a refusal names, the first of alternatives."""
    text = message.partition("nearest that works: ")[2]
    return [setting.strip() for setting in text.split(" or ")[0].split(",")]


def unequal_rotary(spec: DecoderSpec) -> DecoderSpec:
    return with_layer(
        spec, 1, lambda layer: replace(layer, attention=replace(layer.attention, rotary=RotarySpec(8, 1e6)))
    )


def no_rotary(spec: DecoderSpec) -> DecoderSpec:
    layers = (replace(layer, attention=replace(layer.attention, rotary=None)) for layer in spec.layers)
    return replace(spec, layers=tuple(layers))


def odd_head_dim(spec: DecoderSpec) -> DecoderSpec:
    layers = (replace(layer, attention=replace(layer.attention, head_dim=7)) for layer in spec.layers)
    return replace(spec, layers=tuple(layers))


def learned_positions(spec: DecoderSpec) -> DecoderSpec:
    return replace(spec, learned_positions=spec.context_limit)


def distance_slopes(spec: DecoderSpec) -> DecoderSpec:
    return with_layer(
        spec, 1, lambda layer: replace(layer, attention=replace(layer.attention, distance_slopes=(0.5,) * 4))
    )


def unchanged(spec: DecoderSpec) -> DecoderSpec:
    return spec


REFUSED = [
    pytest.param(unchanged, ["target.soc=SM8651"], "'SM8651'", "SM8650", id="unknown chipset"),
    pytest.param(unchanged, ["weights.scale_format=fp16"], "fp16", "weights.scale_format=lpbq", id="fp16 scales"),
    pytest.param(unchanged, ["weights.scale_format=bf16"], "bf16", "weights.scale_format=lpbq", id="bf16 scales"),
    pytest.param(unchanged, ["kv_cache.bits=16"], "16-bit KV", "kv_cache.bits=8", id="16-bit KV"),
    pytest.param(unchanged, ["kv_cache.bits=32"], "16 bits at most", "kv_cache.bits=8", id="float32 KV"),
    pytest.param(
        unchanged, ["kv_cache.zero_point=true"], "zero point", "kv_cache.zero_point=false", id="zero point per token"
    ),
    pytest.param(unchanged, ["kv_cache.rotation=true"], "rotation", "kv_cache.rotation=false", id="rotation per token"),
    pytest.param(odd_head_dim, ["kv_cache.bits=4"], "head_dim 7 is odd", "kv_cache.bits=8", id="odd head_dim in INT4"),
    pytest.param(
        unchanged, ["cache.sinks=4"], "cache.sinks has no effect", "cache.sinks=0", id="sinks without a window"
    ),
    pytest.param(
        unchanged, ["cache.window=500", "cache.sinks=12"], "cache.sinks", "cache.sinks=0", id="sinks that hide nothing"
    ),
    pytest.param(
        unchanged, ["cache.context=128"], "verify.window 256", "verify.window=128", id="verify.window over the context"
    ),
    pytest.param(
        unchanged, ["verify.window=513"], "verify.window 513", "verify.window=512", id="verify.window over the model's"
    ),
    pytest.param(
        unchanged,
        ["cache.context=8", "verify.decode_tokens=4"],
        "verify.window 256",
        "cache.context=16",
        id="context below every window",
    ),
    pytest.param(
        unchanged, ["verify.decode_tokens=256"], "decode_tokens", "verify.decode_tokens=255", id="nothing to prefill"
    ),
    pytest.param(
        unchanged,
        ["calibration.window=513"],
        "calibration.window 513",
        "calibration.window=512",
        id="calibration.window over the model's limit",
    ),
]
"""Refusals that some other recipe avoids."""

REFUSED_MODELS = [
    pytest.param(learned_positions, [], "learned positions", "a recipe for ONNX Runtime", id="learned positions"),
    pytest.param(distance_slopes, [], "ALiBi", "a recipe for ONNX Runtime", id="ALiBi"),
    pytest.param(unequal_rotary, [], "different rotary", "a model whose layers share", id="unequal rotary settings"),
    pytest.param(no_rotary, [], "without rotary", "a model with rotary embedding", id="no rotary embedding"),
]
"""Refusals that no recipe avoids on any target that there is."""


@pytest.mark.parametrize(("change", "overrides", "reason", "nearest"), [*REFUSED, *REFUSED_MODELS])
def test_a_combination_that_the_npu_cannot_do_is_refused_with_reason_and_nearest(
    change: Callable[[DecoderSpec], DecoderSpec], overrides: list[str], reason: str, nearest: str
) -> None:
    found, _, offered = refusal(change(spec_of(tiny_config())), *overrides).partition("nearest that works: ")
    assert reason in found
    assert nearest in offered


@pytest.mark.parametrize(("change", "overrides", "reason", "nearest"), REFUSED)
def test_the_nearest_that_a_refusal_names_is_accepted(
    change: Callable[[DecoderSpec], DecoderSpec], overrides: list[str], reason: str, nearest: str
) -> None:
    spec = change(spec_of(tiny_config()))
    chosen = recipe(*overrides, *offered_settings(refusal(spec, *overrides)))
    assert check_refusals(spec, chosen, find_target(chosen.target.kind)) is None


@pytest.mark.parametrize(("change", "overrides", "reason", "nearest"), REFUSED_MODELS)
def test_a_refusal_of_a_model_offers_no_target_that_is_not_there(
    change: Callable[[DecoderSpec], DecoderSpec], overrides: list[str], reason: str, nearest: str
) -> None:
    assert "target.kind" not in refusal(change(spec_of(tiny_config())), *overrides)


def test_every_reason_is_given_at_once() -> None:
    message = refusal(
        learned_positions(spec_of(tiny_config())),
        "target.soc=SM1",
        "weights.scale_format=fp16",
        "kv_cache.bits=16",
        "kv_cache.rotation=true",
        "cache.sinks=4",
    )
    for reason in ("SM1", "scale_format", "16-bit KV", "rotation", "learned positions", "cache.sinks"):
        assert reason in message


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["kv_cache.bits=4"],
        ["weights.group_size=16"],
        ["weights.group_size=64"],
        ["weights.group_size=128"],
        ["weights.method=rtn"],
        ["weights.embedding_bits=8", "weights.head_bits=8"],
        ["cache.window=64", "cache.sinks=4"],
        ["target.share_weights=false"],
    ],
    ids=str,
)
def test_what_the_npu_can_do_is_not_refused(overrides: list[str]) -> None:
    assert check_refusals(spec_of(tiny_config()), recipe(*overrides), find_target(QNN)) is None


@pytest.mark.parametrize("activation", ["silu", "gelu", "relu"])
def test_activations_that_the_npu_has_are_accepted(activation: str) -> None:
    assert check_refusals(spec_of(tiny_config(hidden_act=activation)), recipe(), find_target(QNN)) is None


def test_an_odd_head_dim_is_no_obstacle_to_int8() -> None:
    assert check_refusals(odd_head_dim(spec_of(tiny_config())), recipe(), find_target(QNN)) is None


def test_sinks_are_kept_or_refused_but_never_dropped() -> None:
    config = tiny_config("mistral", sliding_window=500)  # window and sinks together exceed the context of 512
    spec, chosen = spec_of(config), recipe("cache.sinks=20")
    target = find_target(QNN)
    kept = all(layer.sinks == 20 for layer in recipe_layout(spec, chosen, target) if layer.window is not None)
    try:
        check_refusals(spec, chosen, target)
        refused = False
    except PlanRefused:
        refused = True
    assert kept or refused


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["cache.context=128", "verify.window=256"], "verify.window"),
        (["verify.window=64", "verify.decode_tokens=65"], "verify.decode_tokens"),
    ],
    ids=str,
)
def test_a_verification_that_cannot_run_is_found_by_the_plan(tmp_path: Path, overrides: list[str], named: str) -> None:
    write_config(tmp_path, tiny_config())
    with pytest.raises(SlmExportError) as caught:
        plan_export(tmp_path, recipe(*overrides))
    assert named in str(caught.value)
