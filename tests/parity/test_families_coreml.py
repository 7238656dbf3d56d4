"""Every family as a Core ML package of each profile equals the oracle in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("coremltools", reason="the coreml extra is not installed")

from all_cases import CASES, DENSE
from coreml_package import lower_coreml, require_parity
from quantized_case import quantized_case

from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.recipe import load_recipe
from exporter.targets.base import find_target
from exporter.targets.coreml.profile import Profile

RECIPES = {Profile.GPU: "ios", Profile.NEURAL_ENGINE: "ios-ane"}


@torch.no_grad()
@pytest.mark.parametrize("profile", RECIPES)
@pytest.mark.parametrize("case", DENSE.values(), ids=DENSE)
def test_a_package_of_every_family_equals_the_oracle(case: str, profile: Profile, tmp_path: Path) -> None:
    decoder = quantized_case(CASES[case], tmp_path, KvFormat(16, KvScaling.NONE), ScaleFormat.FP16)
    recipe = load_recipe(RECIPES[profile])
    assert find_target(recipe.target.kind).refusals(decoder.spec, recipe) == []
    require_parity(lower_coreml(decoder, profile, tmp_path), tmp_path, largest_kl=1e-3)
