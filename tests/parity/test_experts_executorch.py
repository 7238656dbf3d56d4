"""Mixtures of experts as ExecuTorch programs: this project's operator routes and computes what the oracle does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from executorch_artifact import lower_in_blocks, require_parity
from expert_cases import EXPERT_CASES, gpt_oss, qwen2_moe, qwen3_moe
from family_cases import ALTERNATING, Case
from quantized_case import quantized_case
from random_checkpoint import WINDOW

from exporter.decoder.experts import GroupLimit, GroupScore, RouterScore
from exporter.decoder.forward import decode_chunk
from exporter.decoder.spec import Activation, ExpertsSpec, LayerSpec
from exporter.decoder.weight_names import WeightKind, decoder_weights
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.recipe import load_recipe
from exporter.targets.base import find_target
from exporter.targets.executorch.kernels.build import find_compiler

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler on this machine")

WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW}
TWO_LAYERS = {
    "qwen2_moe": Case(qwen2_moe(num_hidden_layers=2, layer_types=ALTERNATING[:2], **WINDOWS), {}),
    "qwen3_moe-one-dense-layer": Case(
        qwen3_moe(num_hidden_layers=2, decoder_sparse_step=2, tie_word_embeddings=True, **WINDOWS), {}
    ),
}
"""Lowering takes seconds by the layer: of the other cases, nothing is new to this target but gpt_oss's learned sinks."""

REFUSED = ("deepseek",)
"""Latents."""
CASES = TWO_LAYERS | {name: case for name, case in EXPERT_CASES.items() if name.startswith((*REFUSED, "gpt_oss"))}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_experts_are_refused_or_equal_the_oracle_in_executorch(case: str, tmp_path: Path) -> None:
    decoder = quantized_case(CASES[case], tmp_path, KvFormat(8, KvScaling.PER_TOKEN), ScaleFormat.BF16)
    recipe = load_recipe("android-cpu-small")
    refusals = find_target(recipe.target.kind).refusals(decoder.spec, recipe)
    assert bool(refusals) == case.startswith(REFUSED)
    if refusals:
        return
    require_equal(decoder, tmp_path)


@torch.no_grad()
def test_learned_sinks_beside_a_float_cache_equal_the_oracle(tmp_path: Path) -> None:
    """Such a cache is read by operators of ExecuTorch, not by this project's attention."""
    case = Case(gpt_oss(num_hidden_layers=1, layer_types=["full_attention"]), {})
    require_equal(quantized_case(case, tmp_path, KvFormat(32, KvScaling.NONE), ScaleFormat.BF16), tmp_path)


def require_equal(decoder: QuantizedDecoder, tmp_path: Path) -> None:
    lowered, _ = lower_in_blocks(decoder, tmp_path)
    require_parity(lowered, tmp_path)


SIGMOIDS = {"bias": True, "selection_bias": True, "score": RouterScore.SIGMOID, "renormalized": True}
PAIRS = GroupLimit(3, 1, GroupScore.BEST_TWO)
CLAMPED = {"limit": 0.3, "up_offset": 1.0, "expert": {"activation": Activation.QUICK_GELU, "bias": True}}
SWITCHES: dict[str, dict[str, Any]] = {
    "best groups, clamped": {"routing": {"limit": GroupLimit(3, 2, GroupScore.BEST)}, **CLAMPED},
    "sigmoids, groups by their best two": {"routing": {"limit": PAIRS, "chosen": 2, **SIGMOIDS}},
}


@torch.no_grad()
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_every_switch_of_a_mixture_equals_the_oracle_in_executorch(switches: dict[str, Any], tmp_path: Path) -> None:
    """Families whose attention this target refuses have them; here they are given to one whose attention it has."""
    case = Case(qwen3_moe(num_experts=6, num_experts_per_tok=3, num_hidden_layers=2), {})
    decoder = quantized_case(case, tmp_path, KvFormat(8, KvScaling.PER_TOKEN), ScaleFormat.BF16)
    plain = decoder.oracle()
    spec = replace(decoder.spec, layers=tuple(switched(layer, switches) for layer in decoder.spec.layers))
    for weight in decoder_weights(spec):
        if weight.name not in decoder.weights.vectors and weight.kind is WeightKind.VECTOR:
            decoder.weights.vectors[weight.name] = torch.randn(weight.shape) * 0.3
    decoder = replace(decoder, spec=spec)
    tokens = torch.arange(20)
    changed, unchanged = (decode_chunk(ops, ops.spec, tokens) for ops in (decoder.oracle(), plain))
    assert float((changed - unchanged).abs().max()) > 1e-2
    require_equal(decoder, tmp_path)


def switched(layer: LayerSpec, switches: dict[str, Any]) -> LayerSpec:
    block = layer.feed_forward
    assert isinstance(block, ExpertsSpec)
    routing, expert = (replace(getattr(block, name), **switches.get(name, {})) for name in ("routing", "expert"))
    others = {name: value for name, value in switches.items() if name not in ("routing", "expert")}
    return replace(layer, feed_forward=replace(block, routing=routing, expert=expert, **others))
