"""Child processes: results, events, errors, crashes, time limits, logs, and death with the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter import errors
from exporter.child import run_child, stream_child
from exporter.errors import ChildFailed, ExitCode, SlmExportError, UsageError

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def _children_find_their_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "child.log"


def run(name: str, log: Path, timeout_s: float = 30.0, **arguments: Any) -> dict[str, Any]:
    return run_child(f"child_functions:{name}", arguments, log, timeout_s)


def failure(name: str, log: Path, timeout_s: float = 30.0, **arguments: Any) -> ChildFailed:
    """The ChildFailed of a function: an internal error on one line that names the log."""
    with pytest.raises(ChildFailed) as caught:
        run(name, log, timeout_s, **arguments)
    fault = caught.value
    assert fault.exit_code == ExitCode.INTERNAL
    assert str(log) in str(fault)
    assert "\n" not in str(fault)
    return fault


def runs(process: int) -> bool:
    """Whether a process is alive; a zombie that nobody collected is dead."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


def test_the_result_comes_back(log: Path) -> None:
    assert run("add", log, a=2, b=3) == {"sum": 5}


def test_arguments_and_results_larger_than_a_pipe_come_through(log: Path) -> None:
    text = "ż" * 300_000
    assert run("echo_size", log, text=text) == {"size": 300_000, "text": text}


def test_events_come_in_order_and_the_result_is_not_one_of_them(log: Path) -> None:
    events: list[dict[str, Any]] = []
    result = run_child("child_functions:count", {"steps": 4}, log, 30.0, events.append)
    assert [event["step"] for event in events] == [0, 1, 2, 3]
    assert result == {"steps": 4}


def test_events_are_streamed_while_the_child_works(log: Path, tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    stream = stream_child("child_functions:wait_for_file", {"path": str(answer), "seconds": 10}, log, 30.0)
    assert next(stream) == {"waiting": True}
    answer.touch()  # too late for a child whose events come at its end
    assert list(stream) == [{"result": {"found": True}}]


@linux
def test_abandoning_a_stream_stops_the_child(log: Path) -> None:
    stream = stream_child("child_functions:count", {"steps": 1000, "pause_s": 0.05}, log, 30.0)
    next(stream)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
    stream.close()
    assert children
    assert not any(runs(int(child)) for child in children)


@linux
def test_the_parent_has_no_open_descriptor_left(log: Path) -> None:
    run("add", log, a=1, b=1)
    before = sorted(os.listdir("/proc/self/fd"))
    run("add", log, a=1, b=1)
    failure("kill_self", log, signal=signal.SIGKILL)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "kind",
    ["UsageError", "CheckpointError", "PlanRefused", "GateFailed", "BudgetExceeded", "ToolchainMissing"],
)
def test_an_error_of_ours_crosses_with_class_message_and_next_step(log: Path, kind: str) -> None:
    with pytest.raises(SlmExportError) as caught:
        run("raise_ours", log, kind=kind)
    assert type(caught.value) is getattr(errors, kind)
    assert (caught.value.message, caught.value.next_step) == ("weights.bin: broken", "copy it again")


def test_a_recipe_error_keeps_its_exit_code(log: Path) -> None:
    with pytest.raises(SlmExportError) as caught:
        run("raise_recipe_error", log)
    assert "seed: broken" in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


def test_any_other_exception_names_the_function_the_fault_and_the_log(log: Path) -> None:
    fault = failure("raise_other", log)
    assert "raise_other: some arithmetic" in fault.message
    assert "ZeroDivisionError" in log.read_text(encoding="utf-8")


def test_an_exception_without_a_text_is_named_by_its_class(log: Path) -> None:
    assert "raise_without_text: ZeroDivisionError" in failure("raise_without_text", log).message


def test_an_exception_of_several_lines_becomes_one(log: Path) -> None:
    assert "first line" in failure("raise_with_lines", log).message
    assert "second line" in log.read_text(encoding="utf-8")


def test_a_result_that_is_no_json_is_a_failure(log: Path) -> None:
    assert "JSON" in failure("return_what_json_cannot_hold", log).message


@pytest.mark.parametrize("function", ["child_functions:none_such", "no_such_module:add"])
def test_an_unknown_function_is_a_failure(log: Path, function: str) -> None:
    with pytest.raises(ChildFailed) as caught:
        run_child(function, {}, log, 30.0)
    assert str(log) in str(caught.value)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_a_crash_names_the_function_the_signal_and_the_log(log: Path, name: str) -> None:
    fault = failure("kill_self", log, signal=getattr(signal, name))
    assert f"kill_self was killed by {name}" in fault.message


def test_a_crash_in_the_middle_of_an_event_is_reported_as_a_crash(log: Path) -> None:
    assert "SIGKILL" in failure("die_within_a_line", log).message


@pytest.mark.parametrize("status", [1, 42])
def test_an_exit_without_a_result_names_the_status(log: Path, status: int) -> None:
    assert f"exit_with ended with status {status}" in failure("exit_with", log, status=status).message


def test_an_exit_with_status_zero_and_no_result_is_a_failure(log: Path) -> None:
    assert "without a result" in failure("exit_with", log, status=0).message


@linux
def test_the_time_limit_stops_the_child(log: Path, tmp_path: Path) -> None:
    pid_file, end_file = tmp_path / "pid", tmp_path / "end"
    fault = failure("sleep", log, timeout_s=1.0, seconds=15, pid_file=str(pid_file), end_file=str(end_file))
    assert "sleep took longer than 1 s" in fault.message
    assert not end_file.exists()
    if pid_file.exists():
        assert not runs(int(pid_file.read_text(encoding="utf-8")))


def test_the_time_limit_holds_when_a_grandchild_lives_on(log: Path, tmp_path: Path) -> None:
    end_file = tmp_path / "end"
    fault = failure("sleep_in_grandchild", log, timeout_s=1.0, seconds=15, end_file=str(end_file))
    assert "took longer than 1 s" in fault.message
    assert not end_file.exists()


@linux
def test_the_time_limit_stops_a_grandchild_too(log: Path) -> None:
    events: list[dict[str, Any]] = []
    with pytest.raises(ChildFailed, match="took longer than 2 s"):
        run_child("child_functions:fork_and_sleep", {"seconds": 60}, log, 2.0, events.append)
    assert wait_until(lambda: not runs(events[0]["grandchild"]), 5)


@linux
def test_abandoning_a_stream_stops_a_grandchild_too(log: Path) -> None:
    stream = stream_child("child_functions:fork_and_sleep", {"seconds": 60}, log, 30.0)
    grandchild = next(stream)["grandchild"]
    stream.close()
    assert wait_until(lambda: not runs(grandchild), 5)


def test_output_goes_to_the_log_and_never_to_the_terminal(log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("print_everywhere", log)
    assert capfd.readouterr() == ("", "")
    text = log.read_text(encoding="utf-8")
    for line in (
        "printed by python",
        "python's standard error",
        "written to descriptor 1",
        "written to descriptor 2",
        "printed by a grandchild",
    ):
        assert line in text


def test_a_second_child_appends_to_the_log(log: Path) -> None:
    run("print_everywhere", log)
    run("print_everywhere", log)
    assert log.read_text(encoding="utf-8").count("written to descriptor 1") == 2


def test_a_crash_after_the_result_does_not_lose_it(log: Path) -> None:
    assert run("crash_at_exit", log) == {"safe": True}


def test_an_error_in_the_event_handler_stops_the_child(log: Path, tmp_path: Path) -> None:
    def refuse(event: dict[str, Any]) -> None:
        raise UsageError("enough")

    arguments = {"steps": 20, "pause_s": 0.5, "end_file": str(tmp_path / "end")}
    with pytest.raises(UsageError, match="enough"):
        run_child("child_functions:count", arguments, log, 60.0, refuse)
    assert not (tmp_path / "end").exists()


@linux
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_interrupting_or_killing_the_parent_kills_the_child(log: Path, tmp_path: Path, name: str) -> None:
    pid_file = tmp_path / "pid"
    program = (
        "import sys; from pathlib import Path; from exporter.child import run_child\n"
        "run_child('child_functions:sleep', {'seconds': 60, 'pid_file': sys.argv[1]}, Path(sys.argv[2]), 60.0)"
    )
    search = os.pathsep.join([str(REPOSITORY), str(HERE)])
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(pid_file), str(log)],
        env={**os.environ, "PYTHONPATH": search},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert wait_until(pid_file.exists, 20)
        child = int(pid_file.read_text(encoding="utf-8"))
        assert runs(child)
        os.kill(parent.pid, getattr(signal, name))
        assert wait_until(lambda: not runs(child), 5)
    finally:
        parent.kill()
        parent.wait()
