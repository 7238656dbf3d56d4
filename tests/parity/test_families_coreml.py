"""Every family is refused for Core ML with a reason, or its package of each profile equals the oracle in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("coremltools", reason="the coreml extra is not installed")

from all_cases import CASES, FULLEST
from coreml_package import lower_coreml, require_parity
from expert_cases import EXPERT_CASES
from quantized_case import quantized_case
from recurrent_cases import RECURRENT_CASES

from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.recipe import load_recipe
from exporter.targets.base import find_target
from exporter.targets.coreml.profile import Profile

REFUSED = {*EXPERT_CASES, *RECURRENT_CASES}
RECIPES = {Profile.GPU: "ios", Profile.NEURAL_ENGINE: "ios-ane"}


@torch.no_grad()
@pytest.mark.parametrize("profile", RECIPES)
@pytest.mark.parametrize("case", FULLEST.values(), ids=FULLEST)
def test_a_family_is_refused_or_its_package_equals_the_oracle(case: str, profile: Profile, tmp_path: Path) -> None:
    decoder = quantized_case(CASES[case], tmp_path, KvFormat(16, KvScaling.NONE), ScaleFormat.FP16)
    recipe = load_recipe(RECIPES[profile])
    refusals = find_target(recipe.target.kind).refusals(decoder.spec, recipe)
    assert bool(refusals) == (case in REFUSED)
    if refusals:
        return
    require_parity(lower_coreml(decoder, profile, tmp_path), tmp_path, largest_kl=1e-3)
