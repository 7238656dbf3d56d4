"""Two reports: changes, noise, budgets, and what they look like."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from bench_cases import measured
from command_line import Run

from exporter.errors import UsageError
from exporter.report.budget import Budget, read_budgets
from exporter.report.compare import Comparison, Report, compare
from exporter.report.compare_text import comparison_junit, comparison_lines, comparison_markdown
from exporter.report.latency import TokenCheck, latency_section


def report(tmp_path: Path, name: str, size: int = 1000, ms: float = 5.0, **latency: Any) -> Report:
    spread = tuple(ms * (1 + 0.02 * ((step * 7) % 5 - 2)) for step in range(20))
    section = latency_section(measured(decode_ms=spread, repetitions=4), 500, TokenCheck("oracle", 1, True, 0), None)
    path = tmp_path / f"{name}.json"
    values = {"artifact": {"bytes": size}, "parity": {"mean_kl": 1e-5}, "latency": section | latency}
    path.write_text(json.dumps(values), encoding="utf-8")
    return Report.read(path)


def judged(old: Report, new: Report, *budgets: str) -> list[bool]:
    return [verdict.kept for verdict in compare(old, new, [Budget.parse(text) for text in budgets]).verdicts]


def test_equal_reports_differ_in_nothing(tmp_path: Path) -> None:
    found = compare(report(tmp_path, "old"), report(tmp_path, "new"), [])
    assert {change.percent for change in found.changes} == {0.0}
    assert "+" not in "\n".join(comparison_lines(found))


def test_a_real_change_is_told_from_noise(tmp_path: Path) -> None:
    old = report(tmp_path, "old")
    for ms, noise in ((5.01, True), (7.0, False)):
        changes = {change.name: change for change in compare(old, report(tmp_path, "new", ms=ms), []).changes}
        assert changes["latency.decode_ms.p50"].noise is noise
        assert changes["latency.decode_ms.p50"].percent == pytest.approx(100 * (ms / 5 - 1))


def test_budgets_are_limits_or_changes(tmp_path: Path) -> None:
    old, new = report(tmp_path, "old"), report(tmp_path, "new", size=1011, ms=7.0)
    kept = ["decode_ms.p50 <= 7.5", "artifact.bytes <= +2%", "latency.decode_ms.p50 >= 6", "decode_ms.p50 <= +50%"]
    broken = ["decode_ms.p50 <= 6.9", "artifact.bytes <= +1%", "artifact.bytes <= 1010", "decode_tokens_per_s >= -5%"]
    assert judged(old, new, *kept) == [True] * 4
    assert judged(old, new, *broken) == [False] * 4


def test_noise_breaks_no_change_but_a_limit_is_a_limit(tmp_path: Path) -> None:
    old, new = report(tmp_path, "old"), report(tmp_path, "new", ms=5.01)
    assert judged(old, new, "decode_ms.p50 <= +0.1%", "decode_ms.p50 <= 5.005") == [True, False]


@pytest.mark.parametrize("obtained", ["emulated", "simulated", "estimated"])
def test_times_that_were_not_measured_keep_no_budget_and_are_not_printed(tmp_path: Path, obtained: str) -> None:
    """The figures are there, as a forged or future report might have them."""
    old, new = report(tmp_path, "old"), report(tmp_path, "new", ms=1.2345, obtained=obtained)
    found = compare(old, new, [Budget.parse("decode_ms.p50 <= 25"), Budget.parse("decode_ms.p50 <= +10%")])
    assert [verdict.kept for verdict in found.verdicts] == [False, False]
    for text in ("\n".join(comparison_lines(found)), comparison_markdown(found), comparison_junit(found)):
        assert obtained in text
        assert "1.23" not in text
    assert "1.23" not in json.dumps(found.to_json())


def test_other_devices_and_settings_are_not_compared(tmp_path: Path) -> None:
    old = report(tmp_path, "old")
    for other in ({"device": "adb:1"}, {"prompt_tokens": 9}, {"engine": "engine 2"}):
        found = compare(old, report(tmp_path, "new", **other), [Budget.parse("decode_ms.p50 <= +10%")])
        assert not found.verdicts[0].kept
        assert "other conditions" in found.verdicts[0].text
    assert judged(old, report(tmp_path, "new", device="adb:1"), "decode_ms.p50 <= 25") == [True]


@pytest.mark.parametrize(
    "text",
    [
        "decode_ms.p50",
        "decode_ms.p50 < 3",
        "decode_ms.p50 <= fast",
        "decode_ms.p50 <= 3%",
        "decode_ms.p50 <= +3",
        "<= 3",
        "a <= 1 2",
    ],
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Budget.parse(text)


def test_a_budget_file_names_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "budgets.yaml"
    path.write_text("budgets:\n  - decode_ms.p50 <= 25\n  - artifact.bytes < 3\n  - nonsense\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"artifact.bytes < 3.*\| nonsense"):
        read_budgets(path)
    path.write_text("decode_ms.p50: 25\n", encoding="utf-8")
    with pytest.raises(UsageError, match="one list"):
        read_budgets(path)


def test_an_unknown_figure_gets_the_nearest(tmp_path: Path) -> None:
    old = report(tmp_path, "old")
    with pytest.raises(UsageError, match=r"did you mean 'artifact.bytes'"):
        compare(old, old, [Budget.parse("artifact.byte <= 3")])


@pytest.fixture
def broken(tmp_path: Path) -> Comparison:
    budgets = [Budget.parse("decode_ms.p50 <= 6"), Budget.parse("artifact.bytes <= +1%")]
    return compare(report(tmp_path, "old"), report(tmp_path, "new", ms=7.0), budgets)


def test_junit_has_a_case_for_every_budget(broken: Comparison) -> None:
    suite = ElementTree.fromstring(comparison_junit(broken))
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("2", "1")
    assert [case.find("failure") is not None for case in suite] == [True, False]
    assert suite[0].attrib["name"] == "decode_ms.p50 <= 6"


def test_markdown_says_what_broke_and_shows_the_change(broken: Comparison) -> None:
    text = comparison_markdown(broken)
    assert "1 of 2 budgets broken" in text
    assert "| `latency.decode_ms.p50` | 5 | 7 | +40.00 % |" in text


def test_the_command_exits_5_with_the_lines_that_broke(run: Run, tmp_path: Path) -> None:
    old, new = report(tmp_path, "old"), report(tmp_path, "new", ms=7.0)
    (tmp_path / "budgets.yaml").write_text("budgets: [decode_ms.p50 <= 6]\n", encoding="utf-8")
    arguments = ["compare", str(old.path), str(new.path)]
    assert run(*arguments).code == 0
    outcome = run(*arguments, "--budget", str(tmp_path / "budgets.yaml"), "--junit", str(tmp_path / "junit.xml"))
    assert outcome.code == 5
    assert "1 budgets broken: decode_ms.p50 <= 6: 7" in outcome.err
    assert "BROKEN  decode_ms.p50 <= 6: 7" in outcome.out
    assert (tmp_path / "junit.xml").is_file()
    assert run("compare", str(tmp_path / "none.json"), str(new.path)).code == 2
