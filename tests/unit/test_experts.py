"""Mixtures of experts in small: routing rules, rare experts in calibration, what the plan reads per token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from exporter.checkpoint.family import all_families
from exporter.decoder.eager_experts import route
from exporter.decoder.experts import GroupLimit, GroupScore, RouterScore, RoutingSpec
from exporter.decoder.spec import Activation, ExpertsSpec, FeedForwardSpec
from exporter.plan import make_plan
from exporter.quantize import expert_rows
from exporter.quantize.expert_rows import calibration_rows, filled_up
from exporter.quantize.formats import ScaleFormat, WeightFormat
from exporter.quantize.gptq import GptqRounder
from exporter.quantize.quantizer import covariance
from exporter.recipe import load_recipe
from exporter.targets.base import find_target

PRODUCTS = torch.tensor([[2.0, 0.0, 1.9, -1.0, 1.8, 1.7]])
BLOCK = ExpertsSpec(RoutingSpec(3, 1), FeedForwardSpec(8, Activation.SILU))


def test_a_softmax_over_all_experts_weights_the_chosen_ones() -> None:
    chosen, weights = route(PRODUCTS, RoutingSpec(6, 2), None)
    assert chosen.tolist() == [[0, 2]]
    assert torch.allclose(weights, PRODUCTS.softmax(-1)[:, [0, 2]])
    renormalized = route(PRODUCTS, RoutingSpec(6, 2, renormalized=True), None)[1]
    assert torch.allclose(renormalized, PRODUCTS[:, [0, 2]].softmax(-1))


def test_a_selection_bias_decides_and_does_not_weight() -> None:
    bias = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    chosen, weights = route(PRODUCTS, RoutingSpec(6, 1, RouterScore.SIGMOID, selection_bias=True), bias)
    assert chosen.tolist() == [[1]]
    assert weights.tolist() == [[0.5]]


@pytest.mark.parametrize(
    ("score", "expected"), [(GroupScore.BEST, [[0, 1]]), (GroupScore.BEST_TWO, [[4, 5]])], ids=["best", "best-two"]
)
def test_only_the_best_groups_serve(score: GroupScore, expected: list[list[int]]) -> None:
    limit = GroupLimit(3, 1, score)
    assert route(PRODUCTS, RoutingSpec(6, 2, RouterScore.SIGMOID, limit=limit), None)[0].tolist() == expected


def test_an_expert_that_saw_enough_is_calibrated_on_its_own_tokens() -> None:
    value, chosen = torch.randn(100, 16), torch.zeros(100, 1, dtype=torch.int64)
    chosen[:3] = 1
    rows = {name: (own, others) for name, own, others in calibration_rows("f", BLOCK, value, chosen)}
    assert list(rows) == ["f.experts.0", "f.experts.1", "f.experts.2"]
    assert rows["f.experts.0"][0].shape == (97, 16)
    assert not len(rows["f.experts.0"][1])
    assert torch.equal(rows["f.experts.1"][0], value[:3])
    assert not len(rows["f.experts.2"][0])


def test_missing_rows_are_filled_up_with_the_weight_that_they_lack() -> None:
    own, others = torch.ones(3, 16), 2 * torch.ones(50, 16)
    energy = filled_up(own, others).square().sum() / 16
    assert energy == pytest.approx(3 * 1 + (16 - 3) * 4, rel=1e-5)
    assert torch.equal(filled_up(torch.ones(16, 16), others), torch.ones(16, 16))


def test_a_rare_expert_is_rounded_better_for_tokens_that_calibration_did_not_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Correlated inputs, of which the expert saw four."""
    torch.manual_seed(0)
    mixing = torch.randn(64, 64) * torch.logspace(0, -2, 64)[:, None]
    everyone, unseen = torch.randn(2000, 64) @ mixing, torch.randn(500, 64) @ mixing
    own, weight = torch.randn(4, 64) @ mixing, torch.randn(48, 64)

    def error(inputs: torch.Tensor) -> float:
        rounder = GptqRounder(covariance(inputs), WeightFormat(4, 32, ScaleFormat.FP16))
        return float((unseen @ (rounder.quantize(weight).dequantize() - weight).T).square().mean())

    filled = error(filled_up(own, everyone))
    monkeypatch.setattr(expert_rows, "ENOUGH_PER_INPUT", 0.0)
    assert filled < 0.5 * error(filled_up(own, everyone))


def test_the_plan_reads_the_chosen_experts_alone() -> None:
    spec, recipe = all_families().get("mixtral").published_spec(), load_recipe("onnx-cpu")
    plan = make_plan(spec, recipe, find_target("onnxruntime-cpu"))
    assert plan.parameters == 46_702_792_704
    dense = replace(spec.layers[0].feed_forward, routing=replace(spec.layers[0].feed_forward.routing, chosen=8))
    everything = replace(spec, layers=tuple(replace(layer, feed_forward=dense) for layer in spec.layers))
    difference = make_plan(everything, recipe, find_target("onnxruntime-cpu")).bytes_read_per_token
    difference -= plan.bytes_read_per_token
    assert difference == 32 * 6 * 3 * 4096 * 14336 * 9 // 16
