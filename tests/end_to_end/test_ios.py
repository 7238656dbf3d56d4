"""The bundled trained model as Core ML packages: export, verify, generate, repeat."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.command import FAST, SlmExport, overrides, read_json

pytest.importorskip("coremltools", reason="the coreml extra is not installed")


@pytest.fixture(scope="module", params=["ios", "ios-ane"])
def exported(request: pytest.FixtureRequest, slm_export: SlmExport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp(request.param) / "out"
    slm_export.succeed("--recipe", request.param, *FAST, "--output", str(output))
    return output


def test_every_gate_passes_with_all_rings_wrapped_twice(report: dict) -> None:
    assert report["parity"]["passed"]
    assert report["parity"]["exact"]["max_abs_error"] < 1e-4
    assert report["parity"]["top1_agreement"] >= 0.97
    assert report["parity"]["mean_kl"] <= 1e-3
    assert min(wraps for wraps in report["parity"]["ring_wraps_per_layer"] if wraps) > 2
    assert report["parity"]["obtained"] == "simulated"


def test_everything_is_stored_once(report: dict) -> None:
    artifact = report["artifact"]
    assert artifact["tied_embedding_stored_once"]
    assert artifact["duplicate_bytes"] == 0
    assert artifact["weight_bytes"] < 1.15 * report["plan"]["weight_bytes"]
    assert artifact["state_writes_per_call"] == 12


def test_the_manifest_says_that_no_apple_runtime_took_part(exported: Path) -> None:
    requirements = read_json(exported, "manifest")["target"]["requirements"]
    assert requirements["apple_runtime_involved"] is False
    assert requirements["minimum_deployment_target"] == {"ios": "18.0", "macos": "15.0"}


def test_verify_repeats_the_figures_from_files_alone(slm_export: SlmExport, exported: Path, report: dict) -> None:
    again = slm_export.verified(exported)
    assert again["parity"]["mean_kl"] == report["parity"]["mean_kl"]
    assert again["parity"]["exact"] == report["parity"]["exact"]


def test_verify_catches_one_changed_byte_of_any_file(slm_export: SlmExport, exported: Path, tmp_path: Path) -> None:
    names = (
        "model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
    )
    slm_export.require_changed_bytes_are_caught(exported, names, tmp_path / "damaged")


def test_generate_continues_a_text_as_the_oracle_does(slm_export: SlmExport, exported: Path) -> None:
    slm_export.require_greedy_text(exported)


@pytest.mark.parametrize("recipe", ["ios", pytest.param("ios-ane", marks=pytest.mark.slow)])
def test_an_int4_cache_exports_too(slm_export: SlmExport, tmp_path: Path, recipe: str) -> None:
    """On four windows: a single one has too few tokens to judge agreement to a percent."""
    settings = overrides("kv_cache.bits=4", "verify.windows=4", "verify.quality_windows=4")
    slm_export.succeed("--recipe", recipe, *settings, "--output", str(tmp_path / "out"))
    report = read_json(tmp_path / "out", "report")
    assert report["parity"]["passed"]
    assert report["parity"]["exact"]["mean_kl"] < 1e-5
    assert report["parity"]["same_codes"]["mean_kl"] < 1e-3
    assert report["parity"]["same_codes"]["top1_agreement"] >= 0.97
    assert report["kv_cache"]["bytes_total"] == 2 * 2 * (2 * 11 + 2) * sum(report["kv_cache"]["slots_per_layer"])


@pytest.mark.slow
def test_a_window_with_sinks_exports_too(slm_export: SlmExport, tmp_path: Path) -> None:
    settings = ("cache.window=48", "cache.sinks=4", "cache.chunk=16", "gates.perplexity_quantized_percent_max=null")
    slm_export.succeed("--recipe", "ios", *FAST, *overrides(*settings), "--output", str(tmp_path / "out"))
    report = read_json(tmp_path / "out", "report")
    assert report["parity"]["exact"]["max_abs_error"] < 1e-4
    assert max(report["kv_cache"]["slots_per_layer"]) == 80
