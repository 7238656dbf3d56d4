"""The bundled trained model as an ONNX artifact: export, verify, generate, repeat."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.command import FAST, PROMPT, SlmExport, export_fixture, overrides, read_json

pytest.importorskip("onnx_ir", reason="the onnx extra is not installed")
pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

import onnx

SMALL = ("--recipe", "onnx-cpu-small", *FAST)


exported = export_fixture(*SMALL)


def test_every_gate_passes_with_all_rings_wrapped(report: dict) -> None:
    assert report["parity"]["passed"]
    assert report["parity"]["top1_agreement"] >= 0.99
    assert min(wraps for wraps in report["parity"]["ring_wraps_per_layer"] if wraps) > 2
    assert report["parity"]["obtained"] == "measured"


def test_the_model_passes_the_checker_and_its_tied_table_is_stored_once(exported: Path, report: dict) -> None:
    onnx.checker.check_model(str(exported / "model.onnx"))
    assert report["artifact"]["tied_embedding_stored_once"]
    assert report["artifact"]["duplicate_bytes"] == 0
    stored = (exported / "model.onnx.data").stat().st_size
    assert stored < 1.05 * report["plan"]["weight_bytes"]


def test_the_manifest_says_what_a_runtime_must_offer(exported: Path) -> None:
    requirements = read_json(exported, "manifest")["target"]["requirements"]
    assert requirements["opsets"] == {"": 24, "com.microsoft": 1}
    assert "com.microsoft::MatMulNBits" in requirements["contrib_operators"]


def test_verify_repeats_the_figures_from_files_alone(slm_export: SlmExport, exported: Path, report: dict) -> None:
    assert slm_export.verified(exported)["parity"]["mean_kl"] == report["parity"]["mean_kl"]


def test_verify_catches_one_changed_byte_of_any_file(slm_export: SlmExport, exported: Path, tmp_path: Path) -> None:
    names = ("model.onnx", "model.onnx.data", "host.json")
    slm_export.require_changed_bytes_are_caught(exported, names, tmp_path / "damaged")


def test_a_profile_says_where_the_time_of_a_token_goes(slm_export: SlmExport, exported: Path) -> None:
    slm_export.require_profile(exported, "MatMulNBits")


def test_generate_continues_a_text_as_the_oracle_does(slm_export: SlmExport, exported: Path) -> None:
    slm_export.require_greedy_text(exported)


def test_two_exports_are_byte_identical_but_for_times(slm_export: SlmExport, exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "again"
    SlmExport(slm_export.repository, tmp_path / "cache").succeed(*SMALL, "--output", str(other))
    first, second = (read_json(folder, "manifest") for folder in (exported, other))
    assert first["outputs"] == second["outputs"]
    assert {**first, "created": ""} == {**second, "created": ""}


def test_an_int4_cache_with_a_window_and_sinks_exports_too(slm_export: SlmExport, tmp_path: Path) -> None:
    settings = ("kv_cache.bits=4", "kv_cache.zero_point=true", "cache.window=48", "cache.sinks=4", "cache.chunk=16")
    # A model that never saw sinks or this window loses quality; what is tested is that the artifact does what the oracle does.
    settings += ("gates_int4_kv.perplexity_quantized_percent_max=null",)
    slm_export.succeed(*SMALL, *overrides(*settings), "--output", str(tmp_path / "out"))
    report = read_json(tmp_path / "out", "report")
    assert report["parity"]["passed"]
    assert max(report["kv_cache"]["slots_per_layer"]) == 48 + 16 - 1 + 4


def test_the_recipe_for_large_models_exports_too(slm_export: SlmExport, tmp_path: Path) -> None:
    """INT8 activations disagree at near-ties of a 5 M model more often than the gate for large ones allows."""
    recipe = ("--recipe", "onnx-cpu", *FAST, "--set", "gates.top1_agreement_min=0.97")
    slm_export.succeed(*recipe, "--output", str(tmp_path / "out"))
    report = read_json(tmp_path / "out", "report")
    assert report["parity"]["disagreements"] == report["parity"]["near_ties"]


def test_two_recipes_share_one_quantization_and_are_compared(slm_export: SlmExport, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("extends: onnx-cpu-small\nkv_cache:\n  bits: 16\n", encoding="utf-8")
    output = tmp_path / "out"
    done = slm_export.succeed(*SMALL, "--recipe", str(other), "--output", str(output))
    assert done.stdout.count("resumed from an earlier run") >= 2
    report = read_json(output, "report")
    (pair,) = report["cross_target"]["pairs"]
    assert (pair["first"], pair["second"]) == ("onnx-cpu-small", "other")
    assert pair["top1_agreement"] > 0.98
    assert sorted(path.name for path in output.iterdir()) == ["onnx-cpu-small", "other", "report.json"]
    slm_export.succeed("verify", str(output / "other"))


def test_a_failing_second_target_leaves_nothing(slm_export: SlmExport, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(
        "extends: onnx-cpu-small\ngates:\n  mean_kl_max: 1.0e-12\nkv_cache:\n  bits: 16\n", encoding="utf-8"
    )
    failed = slm_export.run(*SMALL, "--recipe", str(other), "--output", str(tmp_path / "out"))
    assert failed.returncode == 4
    assert "parity.mean_kl" in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["other.yaml"]


grouped = export_fixture(*SMALL, *overrides("onnx.attention=gqa", "onnx.attention_terms=1", "kv_cache.bits=32"))


def test_grouped_query_attention_passes_every_gate(grouped: Path) -> None:
    report = read_json(grouped, "report")
    assert report["parity"]["passed"]
    assert report["artifact"]["operators"]["com.microsoft::GroupQueryAttention"] == 6
    assert set(report["kv_cache"]["slots_per_layer"]) == {report["plan"]["context"]}


@pytest.mark.parametrize("fixture", ["exported", "grouped"])
def test_the_example_host_writes_the_same_text(
    fixture: str, slm_export: SlmExport, request: pytest.FixtureRequest
) -> None:
    """With onnxruntime, numpy and tokenizers alone: `examples/onnx_generate.py` shares no code with the driver."""
    exported, prompt = request.getfixturevalue(fixture), PROMPT
    example = slm_export.repository / "examples" / "onnx_generate.py"
    command = [sys.executable, str(example), str(exported), prompt, "12"]
    written = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.strip()
    generated = slm_export.succeed("generate", str(exported), "--prompt", prompt, "--max-tokens", "12").stdout.rstrip(
        "\n"
    )
    assert written == prompt + generated


BENCH = ("--prompt-tokens", "8", "--prompt-tokens", "40", "--generate", "12", "--repetitions", "2")


def test_bench_measures_the_artifact_with_the_tokens_of_the_oracle(
    slm_export: SlmExport, exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(exported, folder)
    shown = slm_export.succeed("bench", str(folder), *BENCH).stdout
    latency = read_json(folder, "report")["latency"]
    assert (latency["device"], latency["obtained"], latency["status"]) == ("local", "measured", "complete")
    assert latency["token_check"] == {**latency["token_check"], "tokens": 2 * 3 * 12, "equal": True, "near_ties": 0}
    assert [len(prompt["repetitions"]) for prompt in latency["by_prompt"]] == [2, 2]
    assert latency["decode_ms"]["count"] == 2 * 11
    assert latency["decode_ms"]["p99"] is None
    assert latency["kv_bytes"] == read_json(folder, "report")["kv_cache"]["bytes_total"]
    assert latency["floor"]["decode_over_floor"] > 0
    assert f"p50 {latency['decode_ms']['p50']:.3f}" in shown
    slm_export.succeed("verify", str(folder))


def test_another_export_than_the_oracles_is_void(slm_export: SlmExport, exported: Path, tmp_path: Path) -> None:
    """The host's constants of the export claim another window: the artifact runs, but not as the oracle does."""
    folder = tmp_path / "out"
    shutil.copytree(exported, folder)
    host = read_json(folder, "host") | {"chunk": 8}
    for name in [name for name in host["rings"] if name.startswith("window")]:
        host["rings"][name]["slots"] = 12
    text = json.dumps(host)
    (folder / "host.json").write_text(text, encoding="utf-8")
    manifest = read_json(folder, "manifest")
    manifest["outputs"]["host.json"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    failed = slm_export.run("bench", str(folder), *BENCH, "--prompt-tokens", "120")
    assert failed.returncode == 4, failed.stderr
    assert "differs from the oracle's" in failed.stderr
    latency = read_json(folder, "report")["latency"]
    assert (latency["status"], latency["ttft_ms"], latency["decode_ms"]) == ("void", None, None)


def test_bench_refuses_what_does_not_fit_the_context(slm_export: SlmExport, exported: Path) -> None:
    failed = slm_export.run("bench", str(exported), "--prompt-tokens", "500", "--generate", "64")
    assert failed.returncode == 2
    assert "do not fit the context of 512" in failed.stderr


def test_a_device_that_is_missing_ends_with_6_before_any_work(slm_export: SlmExport, exported: Path) -> None:
    failed = slm_export.run("bench", str(exported), "--device", "iphone", "--device", "qai-hub:Phone")
    assert failed.returncode == 6
    assert "iphone: " in failed.stderr
    assert "qai-hub:Phone: " in failed.stderr
    assert "latency" not in read_json(exported, "report")


def test_a_runner_that_is_lost_leaves_a_report_marked_as_partial(
    slm_export: SlmExport, exported: Path, tmp_path: Path
) -> None:
    folder, runner = tmp_path / "out", tmp_path / "onnxruntime_runner"
    shutil.copytree(exported, folder)
    runner.write_text("#!/bin/sh\nsleep 60\n", encoding="utf-8")
    runner.chmod(0o755)
    failed = slm_export.run("bench", str(folder), *BENCH, "--runner", str(runner), "--time-limit", "2")
    assert failed.returncode == 6
    latency = read_json(folder, "report")["latency"]
    assert (latency["status"], latency["ttft_ms"]) == ("partial", None)
    assert "while loading" in latency["failure"]
