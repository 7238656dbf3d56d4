"""One measurement: what runners say, how they fail, and that nothing is left behind."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench_cases import PretendDevice, measured, snapshot

from device_tests.conditions import SCRIPT, Conditions, Identity, Snapshot
from device_tests.devices.base import RunnerFiles
from device_tests.harness import Job, Measurement, measure
from device_tests.process import run_program
from device_tests.protocol import Event, Memory, RunnerRequest
from device_tests.python_runner import repeat, run
from exporter.errors import ExitCode

REQUEST = RunnerRequest("", ((1, 2, 3),), 4, 1, 2, (4096,))
TALK = """
import json, sys, time
def say(event, **values): print(json.dumps({"event": event, **values}), flush=True)
request = json.load(open(sys.argv[1]))
print("a library greets")
say("loaded", engine="pretend 1", load_ns=1000, threads=1, affinity="0", protocol=1)
for index in range(request["warm_up"] + request["repetitions"]):
    say("repetition", prompt=0, index=index, warm_up=index == 0, ttft_ns=5000, token_ids=[1, 2, 3, 4], decode_ns=[10, 20, 30])
    STOP
say("memory", peak_rss_bytes=1, kv_bytes=2)
say("ended")
"""


class Countdown:
    """A driver that prefers one token after another, and notes what it was asked."""

    context, chunk, vocab_size = 16, 4, 8

    def __init__(self) -> None:
        self.calls: list[str] = []

    def reset(self) -> None:
        self.calls.append("reset")

    def prompt(self, token_ids: list[int]) -> np.ndarray:
        self.calls.append("prompt")
        return self._prefer(token_ids[-1] + 1)

    def prefill(self, token_ids: list[int]) -> np.ndarray:
        self.calls.append("prefill")
        return np.stack([self._prefer(token_id + 1) for token_id in token_ids])

    def decode(self, token_id: int) -> np.ndarray:
        self.calls.append("decode")
        return self._prefer(token_id + 1)

    def kv_bytes(self) -> int:
        return 77

    def _prefer(self, token: int) -> np.ndarray:
        return np.eye(8, dtype=np.float32)[token % 8]


def talking(tmp_path: Path, stop: str = "pass", limit_s: float = 20.0) -> Measurement:
    """A runner that does `stop` after each repetition."""
    script = tmp_path / "runner.py"
    script.write_text(TALK.replace("STOP", stop), encoding="utf-8")
    job = Job(tmp_path, (), RunnerFiles((sys.executable, str(script))), REQUEST, limit_s)
    return measure(PretendDevice(), job)


def test_a_runner_that_ends_well_is_a_complete_measurement(tmp_path: Path) -> None:
    found = talking(tmp_path)
    assert found.failure is None
    assert [item.index for item in found.timed(0)] == [1, 2]
    assert found.runs(0)[0].decode_ms == (1e-5, 2e-5, 3e-5)
    assert found.conditions is not None
    assert found.conditions.after is not None


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        ("sys.exit('out of memory')", "out of memory"),
        ("say('error', message='model.onnx is damaged')", "model.onnx is damaged"),
        ("say('memory')", "no event of the protocol"),
        ("import os; os.kill(os.getpid(), 11)", "exit status -11"),
    ],
)
def test_a_runner_that_fails_says_so_and_what_it_had_done_is_kept(tmp_path: Path, stop: str, said: str) -> None:
    found = talking(tmp_path, stop)
    assert found.failure is not None
    assert found.failure.exit_code == ExitCode.INTERNAL
    assert said in found.failure.message
    assert len(found.heard.repetitions) == 1


def test_a_runner_that_ends_early_without_a_word_is_a_failure(tmp_path: Path) -> None:
    found = talking(tmp_path, "sys.exit(0)")
    assert found.failure is not None
    assert "repetition 2 of 3" in found.failure.message


def test_a_runner_that_hangs_ends_with_the_time_limit_and_leaves_no_process(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    found = talking(tmp_path, f"open({str(note)!r}, 'w').write(str(__import__('os').getpid())); time.sleep(60)", 2.0)
    assert found.failure is not None
    assert found.failure.exit_code == ExitCode.TOOLCHAIN_MISSING
    assert "nothing ended within 2 s" in found.failure.message
    assert len(found.heard.repetitions) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_a_program_that_is_not_there_is_a_failure_too(tmp_path: Path) -> None:
    job = Job(tmp_path, (), RunnerFiles((str(tmp_path / "nothing"),)), REQUEST, 5.0)
    failure = measure(PretendDevice(), job).failure
    assert failure is not None
    assert failure.exit_code == ExitCode.TOOLCHAIN_MISSING


def test_the_python_runner_says_nothing_while_its_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two events lies a whole repetition: a call that wrote anything would show up among the driver's."""
    driver, opened = Countdown(), []
    monkeypatch.setattr("device_tests.python_runner.open_driver", lambda *_: driver)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and driver.calls and driver.calls[-1] in ("prompt", "decode") and len(opened) < 9:
            opened.append(arguments[0]) if not finished else None

    finished: list[bool] = []
    sys.addaudithook(watch)
    events: list[Event] = []

    def emit(event: Event) -> None:
        driver.calls.append("emit")
        events.append(event)

    run(REQUEST, emit)
    finished.append(True)
    assert driver.calls[1:] == [*(["reset", "prompt", "decode", "decode", "decode", "emit"] * 3), *(["emit"] * 3)]
    assert opened == []
    assert next(event for event in events if isinstance(event, Memory)).kv_bytes == 77


def test_a_repetition_is_greedy_and_has_a_gap_for_every_token_but_the_first() -> None:
    found = repeat(Countdown(), [1, 2, 3], 4, 0, 1, False)
    assert found.token_ids == (4, 5, 6, 7)
    assert len(found.decode_ns) == 3
    assert min(found.decode_ns) > 0
    assert found.ttft_ns > 0


def test_a_repetition_in_which_the_device_grew_hotter_is_marked() -> None:
    calm = measured()
    assert calm.disturbed(0) == [False, False, False]
    assert calm.conditions is not None
    hot = replace(calm, conditions=replace(calm.conditions, during=(snapshot(1.0), snapshot(2.5, thermal_status=2))))
    assert hot.disturbed(0) == [True, True, False]
    slow = replace(
        calm, conditions=replace(calm.conditions, during=(snapshot(1.0), snapshot(2.5, max_khz=(1_000_000,))))
    )
    assert slow.disturbed(0) == [True, True, False]


def test_conditions_are_parsed_and_what_is_not_said_is_null() -> None:
    text = "load 0.71 0.5 0.4 1/300 99\ngovernor schedutil\ngovernor performance\nkhz 900000\nmax_khz 2000000\n"
    text += (
        "celsius_milli 41500\ncelsius_milli -273000\nthermal_status 1\nbattery_percent 77\nbattery_decicelsius 291\nkh"
    )
    assert Snapshot.parse(text, 1.0) == Snapshot(
        1.0, 0.71, "performance+schedutil", (900000,), (2000000,), 41.5, 1, 77, 29.1
    )
    assert Snapshot.parse("", 0.0) == Snapshot(0.0, None, None, (), (), None, None, None, None)
    assert Identity.parse("soc \nmemory_kb 10\n") == Identity(None, None, None, None, None, None, 10240)


@pytest.mark.parametrize(
    ("text", "watts"),
    [
        ("microamperes -500000\nmicrovolts 4000000\n", 2.0),
        ("microamperes 500000\nmicrovolts 4000000\n", 2.0),
        ("microamperes 0\nmicrovolts 4000000\n", None),
        ("microvolts 4000000\n", None),
    ],
)
def test_power_is_known_where_the_battery_says_both(text: str, watts: float | None) -> None:
    assert Snapshot.parse(text, 0.0).battery_watts == watts


def test_the_script_reads_a_battery_only_while_it_discharges(tmp_path: Path) -> None:
    battery = tmp_path / "battery"
    battery.mkdir()
    for name, value in (("current_now", "-250000"), ("voltage_now", "4000000")):
        (battery / name).write_text(value + "\n", encoding="utf-8")
    script = SCRIPT.replace("/sys/class/power_supply", str(tmp_path))
    for status, watts in (("Discharging", 1.0), ("Charging", None)):
        (battery / "status").write_text(status + "\n", encoding="utf-8")
        done = run_program(["sh", "-c", script], 10)
        assert done.ok
        assert Snapshot.parse(done.output, 0.0).battery_watts == watts


def test_a_measurement_without_readings_marks_nothing() -> None:
    nothing = Conditions(Identity.parse(""), Snapshot.parse("", 0.0), (), None)
    assert not nothing.disturbed(0.0, 5.0)
