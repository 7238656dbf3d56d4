"""The bundled trained model as an ExecuTorch program with a Core ML delegate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.command import FAST, SlmExport, export_fixture

pytest.importorskip("coremltools", reason="the coreml extra is not installed")
pytest.importorskip("executorch", reason="the executorch extra is not installed")

exported = export_fixture("--recipe", "ios-executorch", *FAST, model="two_layers")


def test_the_package_taken_out_of_the_program_passes_every_gate(report: dict) -> None:
    assert report["parity"]["passed"]
    assert report["parity"]["exact"]["max_abs_error"] < 1e-4
    assert report["parity"]["mean_kl"] <= 1e-3
    assert min(wraps for wraps in report["parity"]["ring_wraps_per_layer"] if wraps) > 2
    artifact = report["artifact"]
    assert artifact["delegates_per_method"] == {"forward": 1}
    assert artifact["tied_embedding_stored_once"]
    assert artifact["duplicate_bytes"] == 0


def test_inspect_and_generate_read_the_program(slm_export: SlmExport, exported: Path) -> None:
    facts = json.loads(slm_export.succeed("inspect", str(exported / "model.pte"), "--json").stdout)
    assert facts["package"] == str(exported / "model.pte")
    assert list(facts["functions"]) == ["main"]
    slm_export.require_greedy_text(exported)
