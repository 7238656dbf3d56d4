"""Every family is refused for Core ML with a reason, or its package of each profile equals the oracle in the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
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

RECIPES = {Profile.GPU: "ios", Profile.NEURAL_ENGINE: "ios-ane"}
REFUSED = {
    Profile.GPU: {*EXPERT_CASES, "jamba"},
    Profile.NEURAL_ENGINE: {*EXPERT_CASES, *RECURRENT_CASES} - {"lfm2"},
}
QUICK = ("lfm2", "mamba", "mamba2")
"""One case for each recurrent mixer."""


def cases() -> Iterator[object]:
    for family, case in FULLEST.items():
        slow = case in RECURRENT_CASES and case not in QUICK
        yield pytest.param(case, id=family, marks=pytest.mark.slow if slow else ())


@pytest.fixture(scope="module", params=cases())
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
    assert bool(refusals) == (case in REFUSED[profile])
    if refusals:
        return
    require_parity(lower_coreml(decoder, profile, tmp_path), tmp_path, largest_kl=1e-3)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in RECURRENT_CASES if case not in FULLEST.values()])
def test_other_settings_of_recurrent_families_equal_the_oracle(case: str, tmp_path: Path) -> None:
    """Some of them have logits that hardly differ, of which rounding may make another one the largest."""
    decoder = quantized_case(CASES[case], tmp_path, KvFormat(16, KvScaling.NONE), ScaleFormat.FP16)
    require_parity(lower_coreml(decoder, Profile.GPU, tmp_path), tmp_path, largest_kl=3e-4, least_agreement=0.9)
