"""Every family goes through the plan, INT4 quantization and the ONNX target, and equals the oracle in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx_ir", reason="the onnx extra is not installed")

from all_cases import CASES, FULLEST
from onnx_artifact import lower_onnx, require_parity
from quantized_case import quantized_case

from exporter.checkpoint.family import all_families
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.recipe import load_recipe
from exporter.targets.base import find_target


def test_every_family_has_a_case() -> None:
    assert sorted(FULLEST) == all_families().names()
    assert all(CASES[case].config.model_type == family for family, case in FULLEST.items())


@torch.no_grad()
@pytest.mark.parametrize("case", FULLEST.values(), ids=FULLEST)
def test_int4_export_equals_the_oracle_in_onnx_runtime(case: str, tmp_path: Path) -> None:
    decoder = quantized_case(CASES[case], tmp_path, KvFormat(8, KvScaling.PER_TOKEN), ScaleFormat.FP16)
    recipe = load_recipe("onnx-cpu")
    assert find_target(recipe.target.kind).refusals(decoder.spec, recipe) == []
    lower_onnx(decoder, tmp_path)
    require_parity(decoder, tmp_path)
