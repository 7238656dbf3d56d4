"""pytest fixtures for budgets on devices: a team's own tests, skipped with the reason where a device is absent.

    pytest -p device_tests.plugin --slm-export out --slm-device local --slm-device adb --slm-runner out/runner test_latency.py

A test that takes `device_latency` runs once per device, as `test_decode_budget[adb]`. Every device is measured once per session. Like the
command line, this module stands above the pipeline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exporter.bench import BenchRequest, bench
from exporter.errors import ToolchainMissing
from exporter.progress import StageDisplay
from exporter.report.latency import Latency, shown_latency, why_not_shown


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which export, where, and with which runner."""
    group = parser.getgroup("slm-export")
    group.addoption("--slm-export", type=Path, default=None, metavar="FOLDER", help="output folder of an export")
    group.addoption("--slm-device", action="append", default=None, metavar="KIND", help="device; default: local")
    group.addoption("--slm-runner", action="append", default=[], metavar="FOLDER", help="folder of a C++ runner")
    group.addoption("--slm-repetitions", type=int, default=5, metavar="N", help="timed runs of each prompt")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device_latency" in metafunc.fixturenames:
        devices = metafunc.config.getoption("--slm-device") or ["local"]
        metafunc.parametrize("device_latency", devices, indirect=True, scope="session")


@pytest.fixture(scope="session")
def exported_model(request: pytest.FixtureRequest) -> Path:
    """The export under test."""
    folder: Path | None = request.config.getoption("--slm-export")
    if folder is None:
        pytest.skip("no export is named; pass --slm-export FOLDER")
    return folder


@pytest.fixture(scope="session")
def device_latency(request: pytest.FixtureRequest, exported_model: Path) -> Latency:
    """What was measured on one device, with the oracle's token ids; `section` has the keys of `latency` in report.json. Skips where the
    device is absent, or where its times are another machine's."""
    from rich.console import Console

    runner, repetitions = (request.config.getoption(f"--slm-{name}") for name in ("runner", "repetitions"))
    asked = BenchRequest(exported_model, (request.param,), repetitions=repetitions, runners=tuple(runner))
    try:
        section: dict[str, Any] = bench(asked, StageDisplay(Console(), quiet=True))[0]
    except ToolchainMissing as fault:
        pytest.skip(str(fault))
    latency = shown_latency(section)
    if latency is None:
        pytest.skip(f"{request.param}: {why_not_shown(section)}")
    return latency
