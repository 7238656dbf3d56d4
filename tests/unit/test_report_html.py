"""report.html: complete in itself, and silent where nothing was measured."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from bench_cases import measured
from test_docs_keys import example_report

from exporter.report.charts import Bar, Line, bar_chart, histogram, line_chart
from exporter.report.html import render
from exporter.report.latency import TokenCheck, latency_section
from exporter.targets.base import Obtained


def page(*sections: dict[str, Any]) -> str:
    return render({**example_report(), "latency_devices": list(sections)})


def section(**changes: Any) -> dict[str, Any]:
    check = TokenCheck("oracle", 8, True, 0)
    return latency_section(measured(decode_ms=(4.321, 5.432, 6.543)), 500, check, None) | changes


class Tags(HTMLParser):
    """Every tag that is opened and not closed, and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_asks_for_nothing_from_elsewhere() -> None:
    tags, text = Tags(), page(section())
    tags.feed(text)
    assert tags.open == []
    assert tags.addresses == []
    assert not re.search(r"https?://|@import|url\(|<script", text)


def test_figures_of_the_report_are_on_the_page() -> None:
    text = page(section())
    for shown in (
        "5.432",
        "Latency against position",
        "Distribution",
        "8 token ids, all as the oracle&#39;s",
        "phone",
        "Perplexity in three phases",
    ):
        assert shown in text, shown
    assert text.count("<svg") == 4


@pytest.mark.parametrize("obtained", [kind for kind in Obtained if kind is not Obtained.MEASURED])
def test_durations_of_another_machine_are_nowhere_on_the_page(obtained: Obtained) -> None:
    text = page(section(obtained=str(obtained)))
    assert str(obtained) in text
    assert "No latency" in text
    for value in ("4.321", "5.432", "6.543", "43.21", "per token p50"):
        assert value not in text, value


def test_without_a_measurement_the_page_says_so() -> None:
    assert "not measured; see: slm-export bench" in page()
    assert "unplugged" in page(section(status="partial", failure="unplugged"))


def test_what_a_device_says_is_escaped() -> None:
    assert "<b>evil" not in page(section(device="<b>evil"))


def test_charts_hold_flat_single_and_long_series() -> None:
    for points in (((1.0, 5.0),), ((1.0, 0.0), (2.0, 0.0)), tuple((float(x), x * 1e-6) for x in range(500))):
        assert "NaN" not in line_chart([Line("a", points)], "x", "y", "t", floor=0.1)
    assert "nan" not in histogram([("a", [1.0]), ("b", [1.0, 1.0])], "x", "t")
    assert "nan" not in bar_chart([Bar("a", 0.0, "0")], "t")
    assert "<svg" in bar_chart([], "t")


def test_one_outlier_does_not_squeeze_a_histogram() -> None:
    chart = histogram([("a", [1.0, 2.0, 3.0, 4.0] * 50 + [1000.0])], "x", "t")
    heights = [float(value) for value in re.findall(r'height="([\d.]+)" fill', chart)]
    assert sum(height > 1 for height in heights) >= 4
