"""Plans of published models with recurrent layers, from the values of their config.json alone, as public copies of it print them.

Jamba v0.1 is what transformers' configuration defaults state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from exporter.checkpoint.config import Config
from exporter.checkpoint.family import all_families
from exporter.plan import Plan, check_refusals, make_plan
from exporter.recipe import Recipe, load_recipe
from exporter.targets.base import find_target

CONTEXT = 4096


@dataclass(frozen=True)
class Expected:
    """Published parameters; layers with attention, key/value heads and channels of each; recurrent layers and the numbers in each state."""

    parameters: float
    attending: int
    kv_vectors: int
    head_dim: int
    recurrent: int
    state: int


TABLE = {
    "lfm2": Expected(1.17e9, 6, 2 * 8, 64, 10, 2 * 2048),
    "mamba": Expected(2.77e9, 0, 0, 0, 64, 3 * 5120 + 5120 * 16),
    "mamba2": Expected(2.70e9, 0, 0, 0, 64, 3 * (5120 + 2 * 128) + 80 * 64 * 128),
    "jamba": Expected(3.03e9, 2, 2 * 1, 128, 26, 3 * 5120 + 5120 * 16),
    "zamba2": Expected(1.215e9, 6, 2 * 32, 128, 38, 3 * (4096 + 2 * 128) + 64 * 64 * 128),
    "falcon_h1": Expected(0.521e9, 36, 2 * 2, 64, 36, 3 * (1536 + 2 * 128) + 24 * 64 * 128),
    "bamba": Expected(9.78e9, 3, 2 * 8, 128, 29, 3 * (8192 + 2 * 128) + 128 * 64 * 128),
    "granitemoehybrid": Expected(0.34e9, 4, 2 * 4, 64, 28, 3 * (1536 + 2 * 128) + 48 * 32 * 128),
}


def planned(family: str, recipe: Recipe) -> Plan:
    spec, target = all_families().get(family).published_spec(), find_target(recipe.target.kind)
    check_refusals(spec, recipe, target)
    return make_plan(spec, recipe, target)


@pytest.mark.parametrize("family", TABLE)
def test_a_published_model_has_its_size_cache_and_states(family: str) -> None:
    expected = TABLE[family]
    plan = planned(family, load_recipe("onnx-cpu", [f"cache.context={CONTEXT}"]))
    assert abs(plan.parameters / expected.parameters - 1) < 0.005
    per_layer = CONTEXT * expected.kv_vectors * (expected.head_dim + 2)  # INT8 codes and an fp16 scale per vector
    assert sorted(plan.kv_bytes_per_layer) == [0] * plan.kv_bytes_per_layer.count(0) + [per_layer] * expected.attending
    assert plan.kv_bytes_total == per_layer * expected.attending
    assert [size for size in plan.state_bytes_per_layer if size] == [4 * expected.state] * expected.recurrent
    assert plan.to_json()["state_bytes_total"] == plan.state_bytes_total == 4 * expected.state * expected.recurrent


@pytest.mark.parametrize("family", TABLE)
def test_states_count_twice_in_memory_and_do_not_grow_with_the_context(family: str) -> None:
    short, long = (
        planned(family, load_recipe("onnx-cpu", [f"cache.context={context}"])) for context in (1024, CONTEXT)
    )
    assert short.state_bytes_total == long.state_bytes_total
    assert long.device_memory_bytes - short.device_memory_bytes == long.kv_bytes_total - short.kv_bytes_total
    assert short.device_memory_bytes > short.weight_bytes + short.kv_bytes_total + 2 * short.state_bytes_total


@pytest.mark.parametrize("family", TABLE)
def test_int4_weights_take_a_little_more_than_half_a_byte(family: str) -> None:
    plan = planned(family, load_recipe("onnx-cpu"))
    assert 0.5 < plan.weight_bytes / plan.parameters < 0.62


def test_a_hybrid_with_experts_has_its_published_size_and_reads_the_chosen_ones() -> None:
    """Jamba v0.1: 52 billion parameters, 12 billion active."""
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    cache = {
        "num_key_value_heads": 8,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "max_position_embeddings": 262144,
    }
    experts = {"num_experts": 16, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1}
    states = {"mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 256}
    values = {"model_type": "jamba", "vocab_size": 65536, "tie_word_embeddings": False}
    spec = all_families().get("jamba").decoder_spec(Config(values | shape | cache | experts | states))
    recipe = load_recipe("onnx-cpu", [f"cache.context={CONTEXT}"])
    target = find_target(recipe.target.kind)
    check_refusals(spec, recipe, target)
    plan = make_plan(spec, recipe, target)
    assert abs(plan.parameters / 51.57e9 - 1) < 0.005
    assert plan.state_bytes_total == 28 * 4 * (3 * 8192 + 8192 * 16)
    assert plan.kv_bytes_total == 4 * CONTEXT * 2 * 8 * (128 + 2)
    assert 11.5e9 < 8 * plan.bytes_read_per_token / 4.6 < 12.5e9


def test_what_the_largest_state_costs_is_said_in_bytes() -> None:
    """By hand: 64 layers of 3 * 5120 + 5120 * 16 float32 numbers."""
    assert planned("mamba", load_recipe("onnx-cpu")).state_bytes_total == 24_903_680


@pytest.mark.parametrize("recipe", ["android-gpu", "android-npu"])
@pytest.mark.parametrize("family", TABLE)
def test_other_targets_refuse_states_with_the_reason(family: str, recipe: str) -> None:
    chosen = load_recipe(recipe)
    spec = all_families().get(family).published_spec()
    reasons = [str(refusal) for refusal in find_target(chosen.target.kind).refusals(spec, chosen)]
    assert any("recurrent layers carry float32 states from call to call" in reason for reason in reasons)
    assert all("onnx-cpu or android-cpu" in reason for reason in reasons if "recurrent" in reason)


@pytest.mark.parametrize("family", TABLE)
def test_core_ml_holds_inputs_of_convolutions_in_two_bytes_and_sums_in_four(family: str) -> None:
    """Every family's convolutions have taps - 1 = 3 inputs of each channel, LFM2's 2; what else a state holds are sums."""
    float32, halves = (planned(family, load_recipe(recipe)) for recipe in ("onnx-cpu", "ios"))
    spec = all_families().get(family).published_spec()
    inputs = sum(math.prod(layer.recurrence.convolution.state.shape) for layer in spec.layers if layer.recurrence)
    assert halves.state_bytes_total == float32.state_bytes_total - 2 * inputs
    assert inputs > 0


@pytest.mark.parametrize("family", TABLE)
def test_the_neural_engine_takes_convolutions_and_refuses_sums(family: str) -> None:
    recipe = load_recipe("ios-ane")
    target, spec = find_target(recipe.target.kind), all_families().get(family).published_spec()
    reasons = [str(refusal) for refusal in target.refusals(spec, recipe)]
    if family == "lfm2":
        assert reasons == []
        return
    (reason,) = reasons
    assert "sum up states" in reason
    assert "such as ios" in reason


@pytest.mark.parametrize("family", TABLE)
def test_executorch_on_a_cpu_carries_them_in_operators_of_its_own(family: str) -> None:
    plan = planned(family, load_recipe("android-cpu"))
    assert plan.state_bytes_total == planned(family, load_recipe("onnx-cpu")).state_bytes_total > 0
    chosen = load_recipe("android-cpu", ["executorch.operators=plain"])
    spec = all_families().get(family).published_spec()
    reasons = [str(refusal) for refusal in find_target(chosen.target.kind).refusals(spec, chosen)]
    assert any("recurrent layers are operators of this project" in reason for reason in reasons)
