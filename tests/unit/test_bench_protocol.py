"""Lines between host and runner."""

from __future__ import annotations

import json

import pytest

from device_tests.protocol import (
    Ended,
    Event,
    Loaded,
    Memory,
    Probe,
    Repetition,
    RunnerRequest,
    event_line,
    parse_line,
)
from exporter.errors import ChildFailed

EVENTS: list[Event] = [
    Loaded("engine", 5, 1, "0", 1),
    Repetition(0, 1, False, 9, (4, 5), (3,)),
    Memory(10, 20),
    Probe(8, 1, (1, 2)),
    Ended(),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_survives_its_line(event: Event) -> None:
    line = event_line(event)
    assert "\n" not in line
    assert parse_line(line + "\n") == event


def test_a_request_survives_its_file() -> None:
    request = RunnerRequest("artifact", ((1, 2), (3,)), 4, 1, 2, (100,), "module:function")
    assert RunnerRequest.from_json(request.to_json()) == request


@pytest.mark.parametrize("line", ["", "warning: something\n", '{"other": 1}\n', "[1]\n"])
def test_what_libraries_print_is_not_an_event(line: str) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "unheard"}',
        '{"event": "memory"}',
        '{"event": "memory", "peak_rss_bytes": "many", "kv_bytes": 1}',
        '{"event": "memory", "peak_rss_',
        '{"event": "error", "message": "model.onnx is damaged"}',
        json.dumps({"event": "loaded", "engine": "e", "load_ns": 1, "threads": 1, "affinity": "", "protocol": 2}),
    ],
)
def test_what_is_no_event_of_this_protocol_is_an_error(line: str) -> None:
    with pytest.raises(ChildFailed):
        parse_line(line)


def test_an_unknown_key_of_a_newer_runner_is_ignored() -> None:
    assert parse_line('{"event": "memory", "peak_rss_bytes": 1, "kv_bytes": 2, "swap": 3}') == Memory(1, 2)
