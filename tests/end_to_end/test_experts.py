"""A trained mixture of experts, two of whose experts see one token in two hundred, on both runtimes that have experts."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.targets.executorch.kernels.build import find_compiler
from tests.end_to_end.command import FAST, SlmExport, read_json

RECIPES = {"onnx-cpu-small": "onnxruntime", "android-cpu-small": "executorch"}


@pytest.mark.parametrize("recipe", ["onnx-cpu-small", pytest.param("android-cpu-small", marks=pytest.mark.slow)])
def test_a_trained_mixture_keeps_its_perplexity(
    recipe: str, slm_export: SlmExport, shared_models: Path, tmp_path: Path
) -> None:
    pytest.importorskip(RECIPES[recipe], reason="the extra of this recipe is not installed")
    if RECIPES[recipe] == "executorch" and find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")
    model = shared_models / "qwen3moe-16m-tinystories"
    slm_export.succeed("--recipe", recipe, "--model", str(model), *FAST, "--output", str(tmp_path / "out"))
    report = read_json(tmp_path / "out", "report")
    assert report["parity"]["passed"]
    assert report["quality"]["perplexity_quantized"] < 1.01 * report["quality"]["perplexity_full_precision"]
    operators = report["artifact"].get("operators") or report["artifact"]["operators_outside"]["forward"]
    experts = {name: count for name, count in operators.items() if "MoE" in name or "experts" in name}
    assert list(experts.values()) == [6]
