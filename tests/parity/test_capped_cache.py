"""A soft cap notices what a softmax would not: keys of layers with capped scores are cached without a centre."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family_cases import Case
from gemma_cases import gemma2
from quantized_case import quantized_case
from random_checkpoint import VOCABULARY, random_tokens

from exporter.decoder.torch_ops import FLOAT_KV
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.verify.parity import compare_logits, window_logits

FORMATS = {
    "static": KvFormat(8, KvScaling.STATIC, per_channel=True),
    "static-int4": KvFormat(4, KvScaling.STATIC, per_channel=True),
    "int4-zero": KvFormat(4, KvScaling.PER_TOKEN, zero_point=True),
}


@torch.no_grad()
@pytest.mark.parametrize("kv_format", FORMATS.values(), ids=FORMATS)
def test_a_quantized_cache_keeps_capped_scores(kv_format: KvFormat, tmp_path: Path) -> None:
    """Biases move every key away from zero, so that a centre taken off would change what the cap makes of a score."""
    decoder = quantized_case(Case(gemma2(attention_bias=True), {}), tmp_path, kv_format, ScaleFormat.FP16)
    assert all(not constants.key.center.any() for constants in decoder.kv_constants)
    assert any(constants.value.center.any() for constants in decoder.kv_constants)
    tokens = random_tokens(90, VOCABULARY, seed=5).tolist()
    plain = replace(decoder, kv_format=FLOAT_KV, kv_constants=())
    exact = window_logits(plain.oracle(), decoder.spec, tokens, decoder.chunk)
    found = window_logits(decoder.oracle(), decoder.spec, tokens, decoder.chunk)
    assert compare_logits(exact, found).mean_kl < (0.003 if kv_format.bits == 8 else 0.009)
