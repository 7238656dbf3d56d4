"""Traces of engines as operators of a token, and what a profile says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from exporter.errors import PlanRefused
from exporter.profile import etdump, onnx_trace
from exporter.profile.recording import OperatorTime, Recording, by_operator, timed_tokens, warm_up
from exporter.profile.run import ReadBytes, find_profiler, read_bytes, summary
from exporter.profile.text import print_profile, profile_lines
from exporter.targets.base import find_target

PLAN = {
    "slots_per_layer": [4, 16],
    "kv_bytes_per_layer": [40, 320],
    "kv_bytes_total": 360,
    "bytes_read_per_token": 1_000_360,
}
RECORDING = Recording(
    "engine 1", 2, [2.0, 1.0, 4.0], [4.0, 5.0, 3.0], [OperatorTime("product", 3, 2.0), OperatorTime("add", 1, 1.0)]
)


class CountingDriver:
    """A driver that only remembers what was asked of it."""

    context, chunk, vocab_size = 32, 8, 10

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def reset(self) -> None:
        self.calls.append(("reset", None))

    def prefill(self, token_ids: list[int]) -> np.ndarray:
        raise AssertionError("a profile has no use for the logits of every token")

    def prompt(self, token_ids: list[int]) -> np.ndarray:
        self.calls.append(("prompt", token_ids))
        return np.zeros(10)

    def decode(self, token_id: int) -> np.ndarray:
        self.calls.append(("decode", token_id))
        return np.zeros(10)

    def kv_bytes(self) -> int:
        return 0


def test_the_cache_is_filled_up_to_the_position_and_then_single_tokens_are_timed() -> None:
    driver = CountingDriver()
    times = timed_tokens(driver, list(range(9)), 5, 3)
    assert len(times) == 3
    assert driver.calls == [("reset", None), ("prompt", [0, 1, 2, 3, 4]), ("decode", 5), ("decode", 6), ("decode", 7)]


def test_position_zero_has_no_prompt_and_a_warm_up_leaves_an_empty_cache() -> None:
    driver = CountingDriver()
    warm_up(driver, [1, 2, 3, 4, 5, 6])
    assert driver.calls[0] == driver.calls[-1] == ("reset", None)
    driver.calls.clear()
    assert len(timed_tokens(driver, [1, 2], 0, 2)) == 2
    assert [name for name, _ in driver.calls] == ["reset", "decode", "decode"]


def test_operators_are_summed_by_name_and_medians_taken_over_tokens() -> None:
    tokens = [[("a", 1.0), ("b", 9.0), ("a", 2.0)], [("a", 1.0), ("b", 1.0), ("a", 1.0)], [("a", 5.0), ("b", 0.5)]]
    assert by_operator(tokens) == [OperatorTime("a", 2, 3.0), OperatorTime("b", 1, 1.0)]


def test_an_etdump_names_operators_after_the_program_and_takes_a_delegates_own_events_out_of_its_call() -> None:
    event = etdump.TraceEvent
    events = [
        event("Method::execute", 0, False, [9.0, 9.0, 9.0]),
        event("native_call_add.out", 0, False, [0.9, 0.4, 0.2]),
        event("OPERATOR_CALL", 0, False, [1.0, 0.5, 0.25]),
        event("Convert (NC, F32, QD8) #1", 1, True, [0.5, 0.25, 0.125]),
        event("Fully Connected #1", 1, True, [4.0, 2.0, 1.0]),
        event("DELEGATE_CALL", 1, False, [5.0, 2.5, 1.25]),
    ]
    found = etdump.token_events(events, ["aten::add.out", "XnnpackBackend, around its operators"], 2)
    assert [dict(token) for token in found] == [
        {
            "aten::add.out": add,
            "Convert (NC, F32, QD8)": convert,
            "Fully Connected": product,
            "XnnpackBackend, around its operators": around,
        }
        for add, convert, product, around in ((0.5, 0.25, 2.0, 0.25), (0.25, 0.125, 1.0, 0.125))
    ]


def test_kernels_of_an_onnx_profile_belong_to_the_run_in_which_they_began() -> None:
    def kernel(name: str, start: int, us: int) -> dict[str, Any]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": us, "args": {"op_name": name}}

    def run(start: int, us: int) -> dict[str, Any]:
        return {"cat": "Session", "name": "model_run", "ts": start, "dur": us, "args": {}}

    events = [
        {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 5, "args": {}},
        kernel("MatMulNBits", 11, 5), run(10, 10),
        kernel("MatMulNBits", 21, 4), {"cat": "Node", "name": "x_fence_before", "ts": 22, "dur": 0, "args": {}}, run(20, 10),
        kernel("MatMulNBits", 31, 2), kernel("Add", 34, 1), run(30, 10),
    ]  # fmt: skip
    assert onnx_trace.token_events(events, 2) == [[("MatMulNBits", 0.004)], [("MatMulNBits", 0.002), ("Add", 0.001)]]


@pytest.mark.parametrize(("position", "cache"), [(0, 10 + 20), (3, 40 + 80), (9, 40 + 200), (99, 360)])
def test_a_token_reads_all_weights_and_the_slots_in_use(position: int, cache: int) -> None:
    assert read_bytes(PLAN, position) == ReadBytes(1_000_000, cache)


def test_rates_come_from_the_time_without_tracing_and_shares_from_the_time_with_it() -> None:
    found = summary(RECORDING, ReadBytes(1_500_000, 500_000), 4.0, 2.0)
    assert found["ms_per_token"] == {"p50": 2.0, "min": 1.0, "traced_p50": 4.0}
    assert [operator["share"] for operator in found["operators"]] == [0.5, 0.25]
    assert found["between_operators_ms"] == 1.0
    assert found["bytes_per_token"]["total"] == 2_000_000
    assert found["read_gb_s"] == {
        "effective": 1.0,
        "buffer_of_token_bytes": 4.0,
        "memory": 2.0,
        "effective_of_buffer": 0.25,
    }


def test_the_table_and_the_lines_hold_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"source": "a trace", "position": 7, **summary(RECORDING, ReadBytes(1_500_000, 500_000), 4.0, 2.0)}
    print_profile(found, Console(width=200))
    printed = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split()[-3:] for line in printed.splitlines()}
    assert rows["product"] == ["3", "2.0000", "50.0%"]
    assert rows["between operators"][-2:] == ["1.0000", "25.0%"]
    lines = profile_lines(found)
    assert lines[0].startswith(
        "token            2.000 ms at position 7 (4.000 ms while traced), median of 3; engine 1, 2 threads"
    )
    assert "2.00 MB: weights 1.50 MB, cache 500.00 kB" in lines[1]
    assert "1.00 GB/s, 25% of the 4.00 GB/s" in lines[2]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("executorch-qnn", "simulator"), ("coreml-gpu", "simulator"), ("executorch-vulkan", "no runtime")],
)
def test_targets_without_a_profile_are_refused_with_the_reason(kind: str, reason: str) -> None:
    with pytest.raises(PlanRefused, match=reason) as caught:
        find_profiler(kind, find_target(kind))
    assert "\n" not in str(caught.value)


def test_every_profiler_is_one_of_a_target_and_its_function_is_there(tmp_path: Path) -> None:
    for kind, module in (("executorch-xnnpack", etdump), ("onnxruntime-cpu", onnx_trace)):
        name, function = find_profiler(kind, find_target(kind)).function.split(":")
        assert name == module.__name__ and callable(getattr(module, function))
