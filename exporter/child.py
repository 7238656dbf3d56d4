"""Runs a function in a child process: whatever can crash or print from native code.

The child's standard output and error go to a log file; results and events come back as JSON lines through a pipe of
their own. A time limit, a crash and a raised SlmExportError all end as one error in the parent. The child leads a
session of its own, so that what it started in turn is stopped with it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from exporter import errors
from exporter.errors import ChildFailed, SlmExportError

STORAGE_HINT = "free space, or choose another --output or SLM_EXPORT_CACHE"

Emit = Callable[[dict[str, Any]], None]
"""Sends one event to the parent."""


def run_child(
    function: str,
    arguments: dict[str, Any],
    log: Path,
    timeout_s: float,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Calls `module:function(arguments, emit)` in a child and returns its result, a JSON object.

    Raises the child's own SlmExportError, or ChildFailed naming the log when it crashed or ran out of time.
    """
    result: dict[str, Any] | None = None
    with closing(stream_child(function, arguments, log, timeout_s)) as events:
        for event in events:
            if "result" in event:
                result = event["result"]
            elif on_event is not None:
                on_event(event)
    if result is None:
        raise ChildFailed(f"{function.split(':')[-1]} ended without a result", f"see {log}")
    return result


def stream_child(
    function: str, arguments: dict[str, Any], log: Path, timeout_s: float
) -> Generator[dict[str, Any], None, None]:
    """Yields the child's events as they come; the last one holds `result`. Closing the stream kills the child."""
    log.parent.mkdir(parents=True, exist_ok=True)
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "exporter.child", function, str(write_end)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(write_end,),
            env=_environment(),
            start_new_session=True,
        )
    os.close(write_end)
    timed_out = threading.Event()
    timer = threading.Timer(timeout_s, _expire, (process, timed_out))
    timer.daemon = True
    timer.start()
    try:
        with os.fdopen(read_end, encoding="utf-8") as pipe:
            _send_arguments(process, arguments)
            for event in _whole_events(pipe):
                if "error" in event:
                    raise _rebuild_error(event["error"], log)
                yield event
        _check_exit(process, function, log, timeout_s, timed_out)
    finally:
        timer.cancel()
        _kill_group(process)
        process.wait()


def _environment() -> dict[str, str]:
    """The child imports this package even when it is used from a checkout."""
    package_parent = str(Path(__file__).resolve().parent.parent)
    existing = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{package_parent}{os.pathsep}{existing}" if existing else package_parent}


def _send_arguments(process: subprocess.Popen[bytes], arguments: dict[str, Any]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(arguments).encode())
        process.stdin.close()
    except BrokenPipeError:
        pass  # the child died at once; its exit status is reported below


def _whole_events(pipe: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in pipe:
        if line.endswith("\n"):  # one that was cut off belongs to a crash, and the exit status tells that
            yield json.loads(line)


def _expire(process: subprocess.Popen[bytes], timed_out: threading.Event) -> None:
    timed_out.set()
    _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the child and what it started: a survivor may hold the pipe open, on which the parent waits."""
    if process.returncode is not None:
        return  # it has ended and was waited for: its id may be another's by now
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a process that nobody waited for
        os.killpg(process.pid, signal.SIGKILL)


def _check_exit(
    process: subprocess.Popen[bytes], function: str, log: Path, timeout_s: float, timed_out: threading.Event
) -> None:
    status = process.wait()
    name = function.split(":")[-1]
    if timed_out.is_set():
        raise ChildFailed(f"{name} took longer than {timeout_s:.0f} s and was stopped", f"see {log}")
    if status < 0:
        raise ChildFailed(f"{name} was killed by {signal.Signals(-status).name}", f"see {log}")
    if status != 0:
        raise ChildFailed(f"{name} ended with status {status}", f"see {log}")


def _rebuild_error(description: dict[str, str], log: Path) -> SlmExportError:
    kind: type[SlmExportError] = getattr(errors, description["type"], ChildFailed)
    message, next_step = description["message"], description["next_step"]
    if kind is errors.RecipeError:
        return errors.UsageError(message, next_step)  # of the same exit code, and the message lists every problem
    return kind(message, next_step or f"see {log}")


def _main() -> int:
    (module, name), descriptor = sys.argv[1].split(":"), int(sys.argv[2])
    os.set_inheritable(descriptor, False)  # a program that we start must not keep the parent waiting for its end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means, and kills us
    _die_with_parent()
    arguments = json.loads(sys.stdin.buffer.read())
    with os.fdopen(descriptor, "w", encoding="utf-8") as pipe:

        def emit(event: dict[str, Any]) -> None:
            pipe.write(json.dumps(event) + "\n")
            pipe.flush()

        try:
            emit({"result": getattr(importlib.import_module(module), name)(arguments, emit)})
        except SlmExportError as fault:
            emit({"error": {"type": type(fault).__name__, "message": fault.message, "next_step": fault.next_step}})
        except OSError as fault:
            traceback.print_exc()
            emit({"error": _storage_error(fault)})
        except Exception as fault:  # noqa: BLE001  any bug of the function is the parent's to report
            traceback.print_exc()
            emit({"error": {"type": "ChildFailed", "message": f"{name}: {_first_line(fault)}", "next_step": ""}})
    _flush_everything()
    os._exit(0)  # native destructors of the Qualcomm libraries may crash at exit, after the result is safe


def _storage_error(fault: OSError) -> dict[str, str]:
    """A full disk or an unwritable folder is the user's to cure, wherever it is met."""
    message = f"{fault.filename or 'file system'}: {fault.strerror or _first_line(fault)}"
    return {"type": "UsageError", "message": message, "next_step": STORAGE_HINT}


def _first_line(fault: Exception) -> str:
    """The log has the rest; an exception without a text is named by its class."""
    return next((line.strip() for line in str(fault).splitlines() if line.strip()), type(fault).__name__)


def _flush_everything() -> None:
    """The log's last lines sit in Python's buffers, or in those of a native library's own stdio."""
    import ctypes

    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)


def _die_with_parent() -> None:
    """Linux: the kernel kills this child when the parent dies, so that kill -9 leaves no orphan."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(_main())
