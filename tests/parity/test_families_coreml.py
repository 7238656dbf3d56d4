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
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.recipe import load_recipe
from exporter.targets.base import find_target
from exporter.targets.coreml.profile import Profile

REFUSED = {*EXPERT_CASES, *RECURRENT_CASES}
RECIPES = {Profile.GPU: "ios", Profile.NEURAL_ENGINE: "ios-ane"}


@pytest.fixture(scope="module", params=FULLEST.values(), ids=FULLEST)
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, QuantizedDecoder]:
    """A case with its decoder, which both profiles share."""
    with torch.no_grad():
        folder = tmp_path_factory.mktemp("family")
        decoder = quantized_case(CASES[request.param], folder, KvFormat(16, KvScaling.NONE), ScaleFormat.FP16)
    return request.param, decoder


@torch.no_grad()
@pytest.mark.parametrize("profile", RECIPES)
def test_a_family_is_refused_or_its_package_equals_the_oracle(
    quantized: tuple[str, QuantizedDecoder], profile: Profile, tmp_path: Path
) -> None:
    case, decoder = quantized
    recipe = load_recipe(RECIPES[profile])
    refusals = find_target(recipe.target.kind).refusals(decoder.spec, recipe)
    assert bool(refusals) == (case in REFUSED)
    if refusals:
        return
    require_parity(lower_coreml(decoder, profile, tmp_path), tmp_path, largest_kl=1e-3)
