"""Mixtures of experts as ExecuTorch programs: this project's operator routes and computes what the oracle does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from executorch_artifact import FLOAT, require_parity
from expert_cases import EXPERT_CASES
from quantized_case import quantized_case

from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.quantize.quantized_checkpoint import save_quantized
from exporter.recipe import load_recipe
from exporter.targets.base import find_target
from exporter.targets.executorch.kernels.build import find_compiler
from exporter.targets.executorch.xnnpack.lower import lower_in_child
from exporter.targets.executorch.xnnpack.target import TOKEN_BLOCK

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler on this machine")


@torch.no_grad()
@pytest.mark.parametrize("case", EXPERT_CASES)
def test_experts_are_refused_or_equal_the_oracle_in_executorch(case: str, tmp_path: Path) -> None:
    decoder = quantized_case(EXPERT_CASES[case], tmp_path, KvFormat(8, KvScaling.PER_TOKEN), ScaleFormat.BF16)
    recipe = load_recipe("android-cpu-small")
    refusals = find_target(recipe.target.kind).refusals(decoder.spec, recipe)
    assert bool(refusals) == case.startswith(("gpt_oss", "deepseek"))  # learned sinks, latents
    if refusals:
        return
    rounded = tuple(replace(ring, slots=-(-ring.slots // TOKEN_BLOCK) * TOKEN_BLOCK) for ring in decoder.layout)
    decoder = replace(decoder, layout=rounded)
    save_quantized(decoder, tmp_path)
    arguments = {"quantized": str(tmp_path), "artifact": str(tmp_path), "settings": FLOAT}
    lower_in_child(arguments, lambda event: None)
    require_parity(decoder, tmp_path)
