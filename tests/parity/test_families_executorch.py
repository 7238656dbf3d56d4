"""Every family is refused for ExecuTorch's CPU with a reason, or its program equals the oracle in ExecuTorch's runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from all_cases import CASES, FULLEST
from executorch_artifact import lower_in_blocks, require_parity
from quantized_case import quantized_case

from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.recipe import load_recipe
from exporter.targets.base import find_target
from exporter.targets.executorch.kernels.build import find_compiler

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler on this machine")

REFUSED = {"deepseek_v2", "deepseek_v3"}
"""Latents."""
QUICK = {"bloom", "gemma2", "gpt2", *REFUSED}
"""Lowering takes seconds. These have biases by distance, caps and four norms, and learned positions between them; experts and recurrences
have tests of their own."""


def cases() -> Iterator[object]:
    for family, case in FULLEST.items():
        yield pytest.param(case, id=family, marks=() if family in QUICK else pytest.mark.slow)


@torch.no_grad()
@pytest.mark.parametrize("case", cases())
def test_a_family_is_refused_or_its_program_equals_the_oracle(case: str, tmp_path: Path) -> None:
    decoder = quantized_case(
        CASES[case], tmp_path, KvFormat(8, KvScaling.PER_TOKEN), ScaleFormat.BF16, embedding_bits=8
    )
    recipe = load_recipe("android-cpu-small")
    refusals = find_target(recipe.target.kind).refusals(decoder.spec, recipe)
    assert bool(refusals) == (case in REFUSED)
    if refusals:
        return
    lowered, _ = lower_in_blocks(decoder, tmp_path)
    require_parity(lowered, tmp_path)
