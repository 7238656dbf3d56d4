"""The main job on the bundled trained model: export, verify, generate, repeat, and what each leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.command import FAST, SlmExport, export_fixture, overrides, read_json

pytest.importorskip("executorch", reason="the qnn extra is not installed")
pytest.importorskip("onnxruntime_qnn", reason="the qnn extra is not installed")


exported = export_fixture("--recipe", "android-npu", *FAST)


def test_every_gate_passes_with_all_rings_wrapped(report: dict) -> None:
    assert report["parity"]["passed"]
    assert report["parity"]["top1_agreement"] >= 0.98
    assert all(gate["limit"] is not None and gate["passed"] for gate in report["parity"]["gates"])
    windowed = [wraps for wraps in report["parity"]["ring_wraps_per_layer"] if wraps]
    assert len(windowed) == 4
    assert min(windowed) > 2


def test_everything_is_delegated_and_the_cache_is_as_small_as_planned(report: dict) -> None:
    assert report["artifact"]["delegated_fraction"] == 1.0
    assert report["kv_cache"]["slots_per_layer"] == [95, 95, 512, 95, 95, 512]
    assert report["kv_cache"]["bytes_total"] == 2 * 2 * 32 * sum(report["kv_cache"]["slots_per_layer"])
    assert report["kv_cache"]["bytes_total"] == report["plan"]["kv_bytes_total"]


def test_weights_are_stored_once_for_both_methods(report: dict) -> None:
    artifact = report["artifact"]
    assert artifact["weights_shared_between_methods"]
    assert artifact["context_bytes_shipped"] < 0.6 * artifact["context_bytes_unshared"]


def test_the_artifact_is_not_much_larger_than_its_codes(report: dict) -> None:
    assert report["artifact"]["bytes"] < 1.5 * report["plan"]["weight_bytes"]


def test_figures_say_how_they_were_obtained(report: dict) -> None:
    for section in ("artifact", "kv_cache", "parity", "quality", "export", "plan"):
        assert report[section]["obtained"] in ("measured", "simulated", "emulated", "estimated")
    assert report["parity"]["obtained"] == "simulated"
    assert "latency" not in report


def test_verify_repeats_the_figures_from_files_alone(slm_export: SlmExport, exported: Path, report: dict) -> None:
    again = slm_export.verified(exported)
    for name in ("top1_agreement", "mean_kl", "max_abs_error", "tokens"):
        assert again["parity"][name] == report["parity"][name]
    assert again["quality"]["perplexity_artifact"] == report["quality"]["perplexity_artifact"]


def test_verify_catches_one_changed_byte_of_any_file(slm_export: SlmExport, exported: Path, tmp_path: Path) -> None:
    names = ("model.pte", "embedding.safetensors", "host.json", "verification/model.pte")
    slm_export.require_changed_bytes_are_caught(exported, names, tmp_path / "damaged")


def test_generate_continues_a_text_as_the_oracle_does(slm_export: SlmExport, exported: Path) -> None:
    """And not a line of the simulator is among it."""
    slm_export.require_greedy_text(exported)


def test_existing_output_is_refused_before_any_work(slm_export: SlmExport, exported: Path) -> None:
    before = (exported / "manifest.json").read_bytes()
    refused = slm_export.run("--recipe", "android-npu", "--output", str(exported))
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert (exported / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_two_exports_are_byte_identical_but_for_times(slm_export: SlmExport, exported: Path, tmp_path: Path) -> None:
    """With a cache of its own, so that nothing is resumed. Verification is cut short: it changes no artifact byte."""
    other = tmp_path / "again"
    fresh = SlmExport(slm_export.repository, tmp_path / "cache")
    fresh.succeed("--recipe", "android-npu", *FAST, "--output", str(other))
    first, second = read_json(exported, "manifest"), read_json(other, "manifest")
    assert first["outputs"] == second["outputs"]
    assert {**first, "created": ""} == {**second, "created": ""}


@pytest.mark.slow
def test_a_failing_gate_exits_4_and_leaves_nothing(slm_export: SlmExport, tmp_path: Path) -> None:
    output = tmp_path / "out"
    failed = slm_export.run(
        "--recipe", "android-npu", *FAST, "--set", "gates.mean_kl_max=1e-12", "--output", str(output)
    )
    assert failed.returncode == 4
    assert "parity.mean_kl" in failed.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["two-layers", "whole"])
def test_the_recipe_for_small_models_exports_too(
    slm_export: SlmExport, example_model: Path, two_layers: Path, tmp_path: Path, whole: bool
) -> None:
    output, model = tmp_path / "out", example_model if whole else two_layers
    slm_export.succeed("--recipe", "android-npu-small", "--model", str(model), *FAST, "--output", str(output))
    report = read_json(output, "report")
    assert report["parity"]["passed"]
    assert report["plan"]["embedding_bytes"] == 2048 * (256 + 2)


@pytest.mark.slow
def test_int4_kv_runs_the_whole_model(slm_export: SlmExport, tmp_path: Path) -> None:
    output = tmp_path / "out"
    slm_export.succeed("--recipe", "android-npu", *FAST, "--set", "kv_cache.bits=4", "--output", str(output))
    report = read_json(output, "report")
    assert report["parity"]["passed"]
    assert report["kv_cache"]["slots_per_layer"] == [96, 96, 512, 96, 96, 512]
    assert report["kv_cache"]["bytes_total"] == 2 * 2 * 16 * sum(report["kv_cache"]["slots_per_layer"])


@pytest.mark.slow
def test_stories260k_with_remainder_groups(slm_export: SlmExport, shared_models: Path, tmp_path: Path) -> None:
    output, model = tmp_path / "out", shared_models / "stories260K"
    slm_export.succeed("--recipe", "android-npu-small", "--model", str(model), "--output", str(output))
    report = read_json(output, "report")
    assert report["parity"]["top1_agreement"] >= 0.98


@pytest.mark.slow
def test_window_and_sinks_imposed_on_a_full_attention_model(
    slm_export: SlmExport, shared_models: Path, tmp_path: Path
) -> None:
    output, model = tmp_path / "out", shared_models / "stories260K"
    settings = ("cache.window=48", "cache.sinks=4", "gates.perplexity_quantized_percent_max=null")
    command = ("--recipe", "android-npu-small", "--model", str(model), *overrides(*settings))
    slm_export.succeed(*command, "--output", str(output))
    report = read_json(output, "report")
    assert report["parity"]["passed"]
    assert report["kv_cache"]["slots_per_layer"] == [48 + 32 - 1 + 4] * 5


@pytest.mark.slow
@pytest.mark.parametrize("soc", ["SM8750", "SM8550", "SA8295"])
def test_other_chipsets(slm_export: SlmExport, tmp_path: Path, soc: str) -> None:
    slm_export.succeed(
        "--recipe", "android-npu", *FAST, "--set", f"target.soc={soc}", "--output", str(tmp_path / "out")
    )


def test_module_runs_as_a_script() -> None:
    done = subprocess.run([sys.executable, "-m", "exporter", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--recipe" in done.stdout
