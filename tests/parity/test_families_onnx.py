"""Every family goes through the plan, INT4 quantization and the ONNX target, and equals the oracle in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx_ir", reason="the onnx extra is not installed")

from all_cases import CASES
from onnx_artifact import lower_onnx, require_parity
from random_checkpoint import CONTEXT, VOCABULARY, edit_config, random_tokens, save_random_checkpoint

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.checkpoint.family import all_families
from exporter.decoder.cache import CacheSettings, cache_layout
from exporter.quantize.calibration import KvCalibrator
from exporter.quantize.formats import KvFormat, KvScaling, RoundingMethod, ScaleFormat, WeightSettings
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.quantize.quantizer import quantize_decoder
from exporter.recipe import load_recipe
from exporter.targets.base import find_target

CHUNK = 16
FULLEST = {
    "granite": "granite",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "llama": "llama-mlp-bias",
    "mistral": "mistral-window",
    "qwen2": "qwen2-upper-layers",
    "qwen3": "qwen3-layer-types-bias",
    "gemma": "gemma-untied-bias",
    "olmo2": "olmo2",
    "phi": "phi",
    "phi3": "phi3-longrope-long-context",
    "smollm3": "smollm3-windows",
    "stablelm": "stablelm",
    "gpt2": "gpt2",
    "falcon": "falcon-sequential-alibi",
    "mpt": "mpt",
    "bloom": "bloom",
}
"""The case of each family that has most of its switches on."""


def test_every_family_has_a_case() -> None:
    assert sorted(FULLEST) == all_families().names()


@torch.no_grad()
@pytest.mark.parametrize("case", FULLEST.values(), ids=FULLEST)
def test_int4_export_equals_the_oracle_in_onnx_runtime(case: str, tmp_path: Path) -> None:
    folder = save_random_checkpoint(tmp_path / "checkpoint", CASES[case].config)
    edit_config(folder, CASES[case].removed, **CASES[case].changes)
    checkpoint, cache = open_checkpoint(folder).for_context(CONTEXT), CacheSettings(CONTEXT, CHUNK)
    spec, listener = checkpoint.spec, KvCalibrator(checkpoint.spec)
    recipe = load_recipe("onnx-cpu")
    assert find_target(recipe.target.kind).refusals(spec, recipe) == []
    settings = WeightSettings(RoundingMethod.RTN, 32, ScaleFormat.FP16)
    windows = random_tokens(2 * 64, VOCABULARY, seed=3).view(2, 64).tolist()
    weights = quantize_decoder(spec, checkpoint, settings, windows, listener.observe)
    kv_format = KvFormat(8, KvScaling.PER_TOKEN)
    decoder = QuantizedDecoder(
        spec, weights, cache_layout(spec, cache), kv_format, listener.constants(kv_format), CHUNK, CONTEXT
    )
    lower_onnx(decoder, tmp_path)
    require_parity(decoder, tmp_path)
