"""The command `doctor`: one line per finding, and an exit code that says whether all is there."""

from __future__ import annotations

import json

import pytest
from command_line import Run

from exporter.doctor import Finding, target_findings


def findings(target_ready: bool) -> list[Finding]:
    return [
        Finding("python", True, "3.11"),
        Finding("disk", False, "unknown", required=False),
        Finding("target executorch-qnn", target_ready, "ready" if target_ready else "pip install it"),
    ]


def test_doctor_prints_each_finding_and_succeeds_when_all_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.doctor.diagnose", lambda: findings(True))
    outcome = run("doctor")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["ok", "missing", "ok"]


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]], ids=" ".join)
def test_doctor_exits_6_when_something_required_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("exporter.doctor.diagnose", lambda: findings(False))
    outcome = run(*arguments)
    assert "pip install it" in outcome.out
    assert outcome.code == 6


def test_doctor_as_json_is_a_list_of_findings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.doctor.diagnose", lambda: findings(True))
    values = json.loads(run("doctor", "--json").out)
    assert values[0] == {"name": "python", "present": True, "detail": "3.11", "required": True}


def test_the_real_diagnosis_names_interpreter_packages_and_target(run: Run) -> None:
    names = {finding["name"] for finding in json.loads(run("doctor", "--json").out)}
    assert {"python", "memory", "disk", "torch", "safetensors", "tokenizers", "target executorch-qnn"} <= names


def test_a_target_that_lacks_its_toolchain_is_required_only_where_no_other_is_ready() -> None:
    some, none = (
        target_findings({"a": None, "b": "pip install b"}),
        target_findings({"a": "pip install a", "b": "pip install b"}),
    )
    assert [(finding.present, finding.required) for finding in some] == [(True, False), (False, False)]
    assert [(finding.present, finding.required) for finding in none] == [(False, True), (False, True)]
