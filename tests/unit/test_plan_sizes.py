"""Sizes of the plan against a computation by hand."""

from __future__ import annotations

import json

import pytest
from tiny_checkpoint import spec_of, tiny_config
from tiny_plans import plan_of, recipe

from exporter.plan import cache_settings, make_plan
from exporter.recipe import load_recipe
from exporter.targets.base import find_target

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
    assert small.host_memory_bytes > 800_000_000


LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def onnx_host_memory(**settings: int) -> int:
    overrides = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
    chosen = load_recipe("onnx-cpu", ("weights.method=rtn", *overrides))
    return make_plan(spec_of(tiny_config(**LLAMA_1B)), chosen, find_target(chosen.target.kind)).host_memory_bytes


def test_host_memory_is_that_of_the_largest_stage() -> None:
    """What exports of this shape took (benchmarks/README.md): 2.4 GB while they were verified, more where tokens or logits are many."""
    verified = onnx_host_memory(calibration__tokens=2048, verify__window=64)
    assert verified == pytest.approx(2.41e9, rel=0.15)
    assert onnx_host_memory(calibration__tokens=2048, verify__window=564) - verified == 2 * 4 * 128256 * 500
    assert onnx_host_memory(calibration__tokens=65536, verify__window=64) > 2 * verified


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


def test_the_cut_context_is_what_the_layout_uses() -> None:
    spec, chosen = spec_of(tiny_config(max_position_embeddings=64)), recipe("cache.context=100", "cache.chunk=90")
    settings = cache_settings(spec, chosen)
    assert (settings.context, settings.chunk) == (64, 64)
