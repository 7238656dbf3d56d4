"""The latency section, and that no time of an emulator or simulator can be shown as a device's."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from bench_cases import measured

from device_tests.conditions import Snapshot
from exporter.errors import ToolchainMissing
from exporter.report.latency import Latency, NotDeviceLatency, TokenCheck, latency_lines, latency_section, shown_latency
from exporter.targets.base import Obtained

CHECK = TokenCheck("oracle", 32, True, 0)


def section(obtained: Obtained = Obtained.MEASURED, **given: Any) -> dict[str, Any]:
    found = latency_section(measured(obtained), 500, CHECK, given.pop("void", None))
    return json.loads(json.dumps({**found, **given}))


def numbers(value: Any, key: str = "") -> dict[str, float]:
    """Every number below a value, by its key."""
    if isinstance(value, dict):
        return {name: number for part in value for name, number in numbers(value[part], f"{key}.{part}").items()}
    if isinstance(value, list):
        return {name: number for at, part in enumerate(value) for name, number in numbers(part, f"{key}[{at}]").items()}
    return {key: value} if isinstance(value, int | float) and not isinstance(value, bool) else {}


def test_figures_are_those_of_the_longest_prompt() -> None:
    found = section()
    assert (found["prompt_tokens"], found["ttft_ms"], found["prefill_tokens_per_s"]) == (4, 40.0, 100.0)
    assert found["decode_ms"] == {
        "p50": 5.0,
        "p90": 6.0,
        "p99": None,
        "mean": 5.0,
        "std": pytest.approx(0.866, abs=1e-3),
        "count": 9,
    }
    assert [prompt["prompt_tokens"] for prompt in found["by_prompt"]] == [2, 4]
    assert (
        found["by_prompt"][0]["repetitions"]
        == [{"ttft_ms": 40.0, "decode_ms": [4.0, 5.0, 6.0], "disturbed": False}] * 3
    )


def test_the_floor_is_what_the_fastest_reading_allows() -> None:
    floor = section()["floor"]
    assert (floor["read_gb_s"], floor["memory_read_gb_s"]) == (20.0, 10.0)
    assert floor["ms"] == pytest.approx(500 / 20e9 * 1e3)
    assert floor["decode_over_floor"] == pytest.approx(5.0 / floor["ms"])


def test_energy_is_power_times_the_mean_token_and_null_with_one_reading_missing() -> None:
    calm = measured()
    assert calm.conditions is not None
    read = [replace(calm.conditions.before, battery_watts=watts) for watts in (2.0, 3.0, None)]

    def energy(*during: Snapshot) -> dict[str, float | None]:
        conditions = replace(calm.conditions, during=during)
        return latency_section(replace(calm, conditions=conditions), 500, CHECK, None)["energy"]

    assert energy(*read[:2]) == {"device_watts": 2.5, "joules_per_token": pytest.approx(2.5 * 5.0 / 1e3)}
    assert energy(*read) == energy() == {"device_watts": None, "joules_per_token": None}


@pytest.mark.parametrize("obtained", [kind for kind in Obtained if kind is not Obtained.MEASURED])
def test_a_section_that_was_not_measured_holds_no_duration_at_all(obtained: Obtained) -> None:
    found = section(obtained)
    durations = [
        key
        for key in numbers(found)
        if any(word in key for word in ("_ms", ".ms", "_per_s", "gb_s", "joules", "device_watts"))
    ]
    assert durations == []
    assert found["token_check"]["equal"]


@pytest.mark.parametrize("obtained", [kind for kind in Obtained if kind is not Obtained.MEASURED])
def test_a_forged_section_is_not_shown(obtained: Obtained) -> None:
    """Figures of a real device, relabelled: whatever shows latency must refuse the label, not trust the nulls."""
    forged = section() | {"obtained": str(obtained)}
    assert shown_latency(forged) is None
    with pytest.raises(NotDeviceLatency):
        Latency(forged)
    text = "\n".join(latency_lines(forged))
    assert " ms" not in text
    assert "tokens/s" not in text
    assert str(obtained) in text


@pytest.mark.parametrize(
    "broken",
    [
        section(void="token 3 differs"),
        latency_section(measured(failure=ToolchainMissing("unplugged")), 500, None, None),
    ],
    ids=["void", "partial"],
)
def test_a_void_or_partial_measurement_keeps_its_reason_and_loses_its_figures(broken: dict[str, Any]) -> None:
    assert broken["ttft_ms"] is None
    assert broken["decode_ms"] is None
    assert shown_latency(broken) is None
    assert broken["failure"] in "\n".join(latency_lines(broken))


def test_what_was_measured_is_shown() -> None:
    text = "\n".join(latency_lines(section()))
    assert "first token 40.00 ms" in text
    assert "p50 5.000, p90 6.000 ms" in text
    assert "32 token ids as the oracle's" in text
