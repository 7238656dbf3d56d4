"""The C++ host's rings against the rule of the oracle, on random layouts and chunk sizes."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_tests import harness
from exporter.decoder.cache import LayerCache

RUNNERS = Path(harness.__file__).parent / "runners"
FIRST_SLOTS = 256


def random_case(seed: int) -> dict[str, Any]:
    drawn = random.Random(seed)
    window, sinks, chunk = drawn.randint(1, 20), drawn.choice([0, 0, 3]), drawn.randint(1, 9)
    rings = {
        "full_600": {"slots": 600, "sinks": 0, "window": None},
        "window": {"slots": window + chunk - 1 + sinks, "sinks": sinks, "window": window},
    }
    return {"host": {"chunk": chunk, "rings": rings}, "chunks": [drawn.randint(1, 12) for _ in range(60)]}


def expected(case: dict[str, Any]) -> list[str]:
    """By `LayerCache`, whose slots are those of the oracle."""
    rings = {name: LayerCache(**values) for name, values in sorted(case["host"]["rings"].items())}
    lines, length = [], 0
    for wanted in case["chunks"]:
        count = min(wanted, case["host"]["chunk"])
        for ring in rings.values():
            if ring.sinks:
                count = min(count, ring.slots - int(ring.slot_of(np.array([length]))[0]))
        first, length = length, length + count
        parts = [str(count)]
        for ring in rings.values():
            held = ring.held_positions(length)[: ring.slots if ring.window else max(FIRST_SLOTS, _grown(length))]
            parts.append(f"{int(ring.slot_of(np.array([first]))[0])}:" + "".join(f"{value}," for value in held))
        lines.append(" ".join(parts))
    return lines


def _grown(length: int) -> int:
    """A cache doubles when it is full."""
    slots = FIRST_SLOTS
    while slots < length:
        slots *= 2
    return slots


def test_the_rings_of_a_runner_are_those_of_the_oracle(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    program, cases = tmp_path / "rings_check", [random_case(seed) for seed in range(40)]
    source = Path(__file__).with_name("rings_check.cpp")
    subprocess.run([compiler, "-std=c++17", "-O1", f"-I{RUNNERS}", str(source), "-o", str(program)], check=True)
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    done = subprocess.run([program, tmp_path / "cases.json"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [line for case in cases for line in expected(case)]
