"""report.html in a real browser: nothing is wider than the screen of a phone, a desktop or a sheet of paper."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_report_html import page, section

from device_tests.process import run_program

BROWSER_VARIABLE = "SLM_EXPORT_BROWSER"
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
MEASURE = """<script>
const beyond = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 0.5);
document.title = `page ${document.documentElement.scrollWidth} window ${innerWidth} beyond ${beyond.map(e => e.tagName)}.`;
</script></body>"""
LONG_NAMES = {
    "device": "adb:R5CT3000000000000000000000",
    "engine": "onnxruntime 1.31.1 through a provider with a long name",
}


def browser() -> str | None:
    """A Chromium: named, or on the path."""
    return os.environ.get(BROWSER_VARIABLE) or next((found for name in NAMES if (found := shutil.which(name))), None)


def laid_out(text: str, width: int, folder: Path) -> tuple[int, int, str]:
    """Width of the page and of the window in CSS pixels, and the tags of elements that reach beyond it."""
    path = folder / "report.html"
    path.write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    program = browser()
    if program is None:
        pytest.skip(f"no Chromium; install one, or set {BROWSER_VARIABLE}")
    done = run_program([program, *options, f"--window-size={width},900", "--dump-dom", path.as_uri()], 60)
    found = re.search(r"page (\d+) window (\d+) beyond ([\w,]*)\.", done.output)
    assert found, done.reason
    return int(found[1]), int(found[2]), found[3]


@pytest.mark.parametrize("width", [390, 794, 1280])
@pytest.mark.parametrize("changes", [{}, LONG_NAMES, {"obtained": "emulated"}], ids=["plain", "long", "emulated"])
def test_nothing_is_wider_than_the_window(tmp_path: Path, width: int, changes: dict[str, Any]) -> None:
    sheet, window, beyond = laid_out(page(section(**changes), section()), width, tmp_path)
    assert (window, beyond) == (width, "")
    assert sheet <= width


def test_a_page_that_is_too_wide_is_found(tmp_path: Path) -> None:
    broken = page(section()).replace("</h1>", "</h1><p style='width: 500px'>wide</p>")
    sheet, _, beyond = laid_out(broken, 390, tmp_path)
    assert sheet > 390
    assert beyond == "P"
