"""The plan: sizes against a computation by hand, every refusal, and that it needs neither weights nor torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import spec_of, tiny_config, write_config

from exporter.decoder.spec import DecoderSpec, LayerSpec, RotarySpec
from exporter.errors import CheckpointError, ExitCode, PlanRefused, SlmExportError, UsageError
from exporter.plan import Plan, cache_settings, check_refusals, make_plan, plan_export, recipe_layout
from exporter.recipe import Recipe, load_recipe
from exporter.targets.base import find_target
from exporter.targets.executorch.qnn import sdk

REPOSITORY = Path(__file__).resolve().parents[2]
QNN = "executorch-qnn"

# By hand, for tiny_config("llama"): D 32, 2 layers, 4 query and 2 KV heads of 8, feed-forward 48, V 264, context 512.
# INT4 in groups of 32 with LPBQ scales: rows * columns / 2 bytes of codes, 1 byte per group, 4 bytes per row.
QUERY_BYTES = 32 * 16 + 32 * 1 + 4 * 32  # 672, the same for the output projection
KEY_BYTES = 16 * 16 + 16 * 1 + 4 * 16  # 336, the same for the values
GATE_BYTES = 48 * 16 + 48 * 1 + 4 * 48  # 1008, the same for up
DOWN_BYTES = 32 * 24 + 32 * 2 + 4 * 32  # 960: 48 columns are one group and a remainder
MATRIX_BYTES = 2 * (2 * QUERY_BYTES + 2 * KEY_BYTES + 2 * GATE_BYTES + DOWN_BYTES)
VECTOR_BYTES = 4 * (2 * 2 * 32 + 32)
TABLE_BYTES = 264 * 16 + 264 * 1 + 4 * 264
PARAMETERS = 264 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32) + 32


def recipe(*overrides: str) -> Recipe:
    return load_recipe("android-npu", overrides)


def plan_of(config: dict[str, Any], *overrides: str) -> Plan:
    spec, chosen = spec_of(config), recipe(*overrides)
    return make_plan(spec, chosen, find_target(QNN))


def with_layer(spec: DecoderSpec, index: int, change: Callable[[LayerSpec], LayerSpec]) -> DecoderSpec:
    layers = list(spec.layers)
    layers[index] = change(layers[index])
    return replace(spec, layers=tuple(layers))


# Sizes


def test_the_hand_computed_sizes_are_these() -> None:
    assert (QUERY_BYTES, KEY_BYTES, GATE_BYTES, DOWN_BYTES) == (672, 336, 1008, 960)
    assert (MATRIX_BYTES, VECTOR_BYTES, TABLE_BYTES, PARAMETERS) == (9984, 640, 5544, 23968)


def test_an_untied_model_stores_two_tables() -> None:
    plan = plan_of(tiny_config(tied=False))
    assert plan.tied.stored_once
    assert plan.tied.extra_bytes == 0
    assert plan.embedding_bytes == TABLE_BYTES
    assert plan.weight_bytes == MATRIX_BYTES + VECTOR_BYTES + 2 * TABLE_BYTES
    assert plan.parameters == PARAMETERS + 264 * 32


def test_a_tied_model_says_what_its_second_table_costs() -> None:
    plan = plan_of(tiny_config(tied=True))
    assert not plan.tied.stored_once
    assert plan.tied.extra_bytes == TABLE_BYTES
    assert plan.tied.reason
    assert plan.weight_bytes == MATRIX_BYTES + VECTOR_BYTES + 2 * TABLE_BYTES
    assert plan.parameters == PARAMETERS


def test_biases_are_stored_in_float32() -> None:
    biases = 4 * 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32)
    plan, plain = plan_of(tiny_config(bias=True)), plan_of(tiny_config())
    assert plan.weight_bytes - plain.weight_bytes == biases
    assert plan.parameters - plain.parameters == biases // 4


def test_query_and_key_norms_are_stored_in_float32() -> None:
    assert plan_of(tiny_config("qwen3")).weight_bytes - plan_of(tiny_config()).weight_bytes == 4 * 2 * 2 * 8


@pytest.mark.parametrize(
    ("group", "matrix_bytes"),
    [
        (16, 2 * (2 * (512 + 64 + 128) + 2 * (256 + 32 + 64) + 2 * (768 + 96 + 192) + (768 + 96 + 128))),
        (64, 2 * (2 * (512 + 32 + 128) + 2 * (256 + 16 + 64) + 2 * (768 + 48 + 192) + (768 + 32 + 128))),
    ],
)
def test_the_group_size_sets_the_bytes_of_scales(group: int, matrix_bytes: int) -> None:
    table_bytes = 264 * 16 + 264 * (2 if group == 16 else 1) + 4 * 264
    plan = plan_of(tiny_config(tied=False), f"weights.group_size={group}")
    assert plan.weight_bytes == matrix_bytes + VECTOR_BYTES + 2 * table_bytes


def test_an_int8_table_has_one_scale_of_two_bytes_per_row() -> None:
    table_bytes = 264 * 32 + 2 * 264
    plan = plan_of(tiny_config(tied=False), "weights.embedding_bits=8")
    assert plan.embedding_bytes == table_bytes
    assert plan.weight_bytes == MATRIX_BYTES + VECTOR_BYTES + TABLE_BYTES + table_bytes
    both = plan_of(tiny_config(tied=False), "weights.embedding_bits=8", "weights.head_bits=8")
    assert both.weight_bytes == MATRIX_BYTES + VECTOR_BYTES + 2 * table_bytes


@pytest.mark.parametrize(("bits", "bytes_per_vector"), [(8, 8), (4, 4)])
def test_kv_bytes_are_those_of_packed_codes(bits: int, bytes_per_vector: int) -> None:
    plan = plan_of(tiny_config(), f"kv_cache.bits={bits}", "cache.context=100")
    per_layer = 2 * 2 * bytes_per_vector  # keys and values of two heads
    assert plan.kv_bits == bits
    assert plan.kv_bytes_per_token == 2 * per_layer
    assert plan.kv_bytes_per_layer == (100 * per_layer, 100 * per_layer)
    assert plan.kv_bytes_total == 200 * per_layer


def test_the_context_is_cut_to_the_models_own_limit() -> None:
    plan = plan_of(tiny_config(max_position_embeddings=128), "cache.context=1024")
    assert plan.context == 128
    assert plan.slots_per_layer == (128, 128)


def test_a_windowed_layer_is_a_ring_of_window_and_chunk_and_a_full_one_has_the_context() -> None:
    config = tiny_config("mistral", sliding_window=64, layer_types=["sliding_attention", "full_attention"])
    plan = plan_of(config, "cache.context=512", "cache.chunk=32")
    assert plan.slots_per_layer == (64 + 32 - 1, 512)
    assert plan.kv_bytes_per_layer == (95 * 32, 512 * 32)


def test_int4_slots_are_even_because_two_of_them_share_a_byte() -> None:
    plan = plan_of(tiny_config("mistral", sliding_window=64), "kv_cache.bits=4", "cache.chunk=32")
    assert plan.slots_per_layer == (96, 96)
    assert plan.kv_bytes_per_layer == (96 * 16, 96 * 16)


def test_an_imposed_window_and_its_sinks_bound_every_layer() -> None:
    config = tiny_config("mistral", sliding_window=64, layer_types=["sliding_attention", "full_attention"])
    plan = plan_of(config, "cache.window=100", "cache.sinks=4", "cache.chunk=16")
    assert plan.slots_per_layer == (64 + 15 + 4, 100 + 15 + 4)


def test_the_floor_is_the_bytes_read_per_token_over_the_bandwidth() -> None:
    plan = plan_of(tiny_config(), "device.memory_bandwidth_gb_s=2", "cache.context=64")
    read = MATRIX_BYTES + VECTOR_BYTES + TABLE_BYTES + 64 * 2 * 32  # the head, but not the rows of the embedding
    assert plan.bytes_read_per_token == read
    assert plan.floor_ms_per_token == pytest.approx(read / 2e9 * 1e3)


def test_device_memory_is_weights_cache_and_activations_of_a_chunk() -> None:
    plan = plan_of(tiny_config(), "cache.chunk=8", "cache.context=64")
    activations = 2 * 8 * (3 * 32 + 3 * 48 + 264)
    assert plan.device_memory_bytes == plan.weight_bytes + plan.kv_bytes_total + activations


def test_activations_are_those_of_a_chunk_cut_to_the_context() -> None:
    plan = plan_of(tiny_config(), "cache.chunk=32", "cache.context=16")
    activations = 2 * 16 * (3 * 32 + 3 * 48 + 264)
    assert plan.device_memory_bytes == plan.weight_bytes + plan.kv_bytes_total + activations


def test_host_memory_grows_with_the_parameters() -> None:
    small, large = plan_of(tiny_config()), plan_of(tiny_config(intermediate_size=4800))
    added = large.parameters - small.parameters
    assert large.host_memory_bytes - small.host_memory_bytes >= 4 * added
    assert small.host_memory_bytes > 900_000_000


def test_the_json_form_holds_every_figure_and_how_it_was_obtained() -> None:
    plan = plan_of(tiny_config())
    values = json.loads(json.dumps(plan.to_json()))
    assert values["obtained"] == "estimated"
    assert values["kv_bytes_total"] == plan.kv_bytes_total
    assert values["weight_bytes"] == plan.weight_bytes
    assert values["slots_per_layer"] == list(plan.slots_per_layer)


def test_int4_kv_is_remarked_upon() -> None:
    assert plan_of(tiny_config()).remarks == ()
    assert any("INT4 KV" in remark for remark in plan_of(tiny_config(), "kv_cache.bits=4").remarks)


def test_a_plan_needs_the_config_alone(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config())
    assert plan_export(tmp_path, recipe()) == plan_of(tiny_config())


def test_a_plan_of_a_broken_config_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        plan_export(tmp_path, recipe())


def test_an_unknown_target_gets_the_nearest(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config())
    with pytest.raises(UsageError) as caught:
        plan_export(tmp_path, recipe("target.kind=executorch-qnm"))
    assert "did you mean 'executorch-qnn'?" in str(caught.value)


# Refusals


def refusal(spec: DecoderSpec, *overrides: str) -> str:
    """The refusal of a combination: exit code 3, one line, a next step, and a nearest combination."""
    with pytest.raises(PlanRefused) as caught:
        check_refusals(spec, recipe(*overrides), find_target(QNN))
    assert caught.value.exit_code == ExitCode.REFUSED == 3
    assert "\n" not in str(caught.value)
    assert "--set" in caught.value.next_step
    assert "nearest that works: " in caught.value.message
    return caught.value.message


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


def tanh_gelu(spec: DecoderSpec) -> DecoderSpec:
    return spec_of(tiny_config(hidden_act="gelu_pytorch_tanh"))


def unchanged(spec: DecoderSpec) -> DecoderSpec:
    return spec


REFUSED = [
    pytest.param(unchanged, ["target.soc=SM8651"], "'SM8651'", "SM8650", id="unknown chipset"),
    pytest.param(unchanged, ["weights.scale_format=fp16"], "fp16", "weights.scale_format=lpbq", id="fp16 scales"),
    pytest.param(unchanged, ["weights.scale_format=bf16"], "bf16", "weights.scale_format=lpbq", id="bf16 scales"),
    pytest.param(unchanged, ["kv_cache.bits=16"], "16-bit KV", "kv_cache.bits=8", id="16-bit KV"),
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
    pytest.param(tanh_gelu, [], "tanh", "a model with SiLU, ReLU or the exact GELU", id="tanh GELU"),
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


def test_a_chipset_that_resembles_none_gets_the_list() -> None:
    message = refusal(spec_of(tiny_config()), "target.soc=pixel")
    assert "one of these" in message
    assert all(name in message for name in CHIPSETS)


def test_every_reason_is_given_at_once() -> None:
    message = refusal(
        tanh_gelu(spec_of(tiny_config())),
        "target.soc=SM1",
        "weights.scale_format=fp16",
        "kv_cache.bits=16",
        "kv_cache.rotation=true",
        "cache.sinks=4",
    )
    for reason in ("SM1", "scale_format", "16-bit KV", "rotation", "tanh", "cache.sinks"):
        assert reason in message


def test_a_refusal_comes_from_config_and_recipe_alone(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config(hidden_act="gelu_new"))
    with pytest.raises(PlanRefused):
        plan_export(tmp_path, recipe())


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


CHIPSETS = sdk.chipset_names()


@pytest.mark.parametrize("soc", CHIPSETS)
def test_every_chipset_of_executorch_is_accepted(tmp_path: Path, soc: str) -> None:
    write_config(tmp_path, tiny_config())
    assert plan_export(tmp_path, recipe(f"target.soc={soc}")).weight_bytes > 0


def test_the_chipsets_are_those_that_executorch_lists() -> None:
    assert {"SM8550", "SM8650", "SM8750"} <= set(CHIPSETS)
    assert "UNKNOWN_SM" not in CHIPSETS
    assert len(CHIPSETS) == len(set(CHIPSETS)) > 15


@pytest.mark.parametrize("soc", ["", "sm8650", "SM8650 ", "UNKNOWN_SM"])
def test_a_chipset_must_be_named_exactly(soc: str) -> None:
    spec = spec_of(tiny_config())
    with pytest.raises(PlanRefused, match="unknown to ExecuTorch"):
        check_refusals(spec, recipe(f"target.soc='{soc}'"), find_target(QNN))


def test_without_executorch_no_chipset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "chipset_names", lambda: [])
    assert check_refusals(spec_of(tiny_config()), recipe("target.soc=SM1"), find_target(QNN)) is None


def test_the_cut_context_is_what_the_layout_uses() -> None:
    spec, chosen = spec_of(tiny_config(max_position_embeddings=64)), recipe("cache.context=100", "cache.chunk=90")
    settings = cache_settings(spec, chosen)
    assert (settings.context, settings.chunk) == (64, 64)


# The command


def test_the_plan_command_imports_neither_torch_nor_any_other_heavy_package() -> None:
    program = (
        "import sys; sys.argv[1:] = ['plan', '--recipe', 'android-npu']\n"
        "from exporter.cli import main\n"
        "main()\n"
        "heavy = {'torch', 'executorch', 'torchao', 'transformers', 'tokenizers', 'safetensors', 'onnx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
    )
    *plan, imported = done.stdout.splitlines()
    assert plan[0].startswith("model ")
    assert imported == "[]"
