"""Every family is refused for the HTP with a reason, or its graphs, evaluated in float through the host's rings, equal the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from all_cases import CASES, FULLEST
from expert_cases import EXPERT_CASES
from quantized_case import quantized_case
from random_checkpoint import VOCABULARY, random_tokens
from recurrent_cases import RECURRENT_FAMILIES

from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.recipe import load_recipe
from exporter.targets.base import find_target
from exporter.verify.parity import compare_logits, window_logits
from tests.unit.helpers import GraphSession, calibrated_encodings

HTP_CASES = [*FULLEST.values(), "falcon-new-architecture"]
REFUSED = {"bloom", "falcon-sequential-alibi", "gemma3_text", "gpt2", "mpt", *EXPERT_CASES, *RECURRENT_FAMILIES}
"""The cases that the HTP cannot carry."""
KV_FORMAT = KvFormat(8, KvScaling.STATIC, per_channel=True)


@torch.no_grad()
@pytest.mark.parametrize("case", HTP_CASES)
def test_a_family_is_refused_or_its_graphs_equal_the_oracle(case: str, tmp_path: Path) -> None:
    decoder = quantized_case(CASES[case], tmp_path, KV_FORMAT, ScaleFormat.LPBQ)
    recipe = load_recipe("android-npu")
    refusals = find_target(recipe.target.kind).refusals(decoder.spec, recipe)
    assert bool(refusals) == (case in REFUSED)
    if refusals:
        return
    tokens = random_tokens(90, VOCABULARY, seed=5).tolist()
    expected = window_logits(decoder.oracle(), decoder.spec, tokens, decoder.chunk)
    figures = compare_logits(expected, GraphSession(decoder).run(tokens, decoded=20))
    assert figures.mean_kl < 2e-3
    assert figures.top1_agreement > 0.97


@torch.no_grad()
@pytest.mark.parametrize("case", ["gemma2", "stablelm", "phi", "smollm3-windows"])
def test_sixteen_bit_encodings_keep_the_logits(case: str, tmp_path: Path) -> None:
    """Caps, layer norms, biases and composed activations with every value rounded as the accelerator holds it."""
    decoder = quantized_case(CASES[case], tmp_path, KV_FORMAT, ScaleFormat.LPBQ)
    tokens = random_tokens(90, VOCABULARY, seed=5).tolist()
    expected = window_logits(decoder.oracle(), decoder.spec, tokens, decoder.chunk)
    session = GraphSession(decoder, calibrated_encodings(decoder))
    assert compare_logits(expected, session.run(tokens, decoded=20)).mean_kl < 5e-3
