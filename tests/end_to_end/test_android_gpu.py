"""The bundled trained model as a Vulkan program: exported and audited; its graph is checked, and nothing claims that it ran."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.command import FAST, SlmExport, read_json

pytest.importorskip("executorch", reason="the executorch extra is not installed")

NOT_RUN = "not run (no runtime on this machine)"


@pytest.fixture(scope="module", params=["two_layers", pytest.param("example_model", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, slm_export: SlmExport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("android-gpu") / "out"
    model = ("--model", str(request.getfixturevalue(request.param)))
    printed = slm_export.succeed("--recipe", "android-gpu", *model, *FAST, "--output", str(output)).stdout
    assert f"parity           {NOT_RUN}" in printed
    assert "traced graph     top-1" in printed
    return output


def test_report_and_manifest_say_that_the_artifact_was_not_run(exported: Path, report: dict) -> None:
    assert report["parity"]["obtained"] == NOT_RUN
    assert read_json(exported, "manifest")["target"]["parity"] == NOT_RUN
    assert report["parity"]["top1_agreement"] is None
    assert report["quality"]["perplexity_artifact"] is None
    assert NOT_RUN in (exported / "report.html").read_text(encoding="utf-8")


def test_the_graph_equals_the_oracle(report: dict) -> None:
    graph = report["parity"]["graph"]
    assert report["parity"]["passed"]
    assert graph["top1_agreement"] == 1
    assert graph["mean_kl"] < 1e-5
    assert report["quality"]["perplexity_graph"] == pytest.approx(report["quality"]["perplexity_quantized"], rel=1e-3)


def test_one_delegate_takes_everything_and_codes_of_the_tied_table_are_stored_once(
    exported: Path, report: dict
) -> None:
    artifact, plan = report["artifact"], report["plan"]
    kinds = read_json(exported, "config")["layer_types"]
    unbounded = kinds.count("full_attention")
    assert artifact["delegates_per_method"] == {"forward": 1}
    assert artifact["delegated_fraction"] == 1.0
    assert artifact["operators_outside"] == {}
    inside = artifact["operators_inside"]
    assert (inside["sdpa_with_kv_cache.default"], inside["update_cache.default"]) == (
        unbounded,
        2 * (len(kinds) - unbounded),
    )
    caches_and_tables = 131_072 + 2 * 512 * 16 * 2  # zeros of one cache, which all share; cosines and sines
    assert artifact["bytes"] < plan["weight_bytes"] + caches_and_tables + 120_000
    assert report["kv_cache"]["slots_per_layer"] == [512] * len(kinds)
    assert report["kv_cache"]["bytes_total"] == plan["kv_bytes_total"]


@pytest.mark.slow
def test_verify_repeats_the_figures_and_what_would_need_a_runtime_is_refused(
    slm_export: SlmExport, exported: Path, report: dict
) -> None:
    again = json.loads(slm_export.succeed("verify", str(exported), "--json").stdout)
    assert again["parity"]["graph"] == report["parity"]["graph"]
    for command in (
        ["generate", str(exported), "--prompt", "Once"],
        ["bench", str(exported)],
        ["profile", str(exported)],
    ):
        refused = slm_export.run(*command)
        assert refused.returncode == 3
        assert len(refused.stderr.splitlines()) == 1
