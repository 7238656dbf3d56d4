"""Functions that tests run in a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from exporter import errors
from exporter.child import Emit


def add(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    return {"sum": arguments["a"] + arguments["b"]}


def echo_size(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    return {"size": len(arguments["text"]), "text": arguments["text"]}


def note_end(arguments: dict[str, Any]) -> None:
    """Whoever finds the file knows that a function was not stopped."""
    if "end_file" in arguments:
        Path(arguments["end_file"]).touch()


def count(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    for step in range(arguments["steps"]):
        emit({"step": step})
        time.sleep(arguments.get("pause_s", 0.0))
    note_end(arguments)
    return {"steps": arguments["steps"]}


def wait_for_file(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    emit({"waiting": True})
    limit = time.monotonic() + arguments["seconds"]
    while not Path(arguments["path"]).exists() and time.monotonic() < limit:
        time.sleep(0.02)
    return {"found": Path(arguments["path"]).exists()}


def raise_ours(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    raise getattr(errors, arguments["kind"])("weights.bin: broken", "copy it again")


def raise_recipe_error(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    raise errors.RecipeError("my.yaml", ["seed: broken"], "correct it")


def raise_other(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    raise ZeroDivisionError("some arithmetic")


def raise_without_text(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    raise ZeroDivisionError


def raise_with_lines(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    raise RuntimeError("first line\nsecond line\n")


def return_what_json_cannot_hold(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    return {"path": Path("a")}


def kill_self(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    os.kill(os.getpid(), arguments["signal"])
    time.sleep(60)
    return {}


def die_within_a_line(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    os.write(int(sys.argv[2]), b'{"progress": 0.')
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def exit_with(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    os._exit(arguments["status"])


def sleep(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    if "pid_file" in arguments:
        partial = Path(arguments["pid_file"] + ".partial")
        partial.write_text(str(os.getpid()), encoding="utf-8")
        partial.rename(arguments["pid_file"])
    time.sleep(arguments["seconds"])
    note_end(arguments)
    return {}


def sleep_in_grandchild(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    os.system(
        f"sleep {arguments['seconds']}; touch '{arguments['end_file']}'"
    )  # keeps descriptors, as native code does
    return {}


def fork_and_sleep(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """A grandchild that never becomes another program keeps every descriptor."""
    grandchild = os.fork()
    if grandchild == 0:
        time.sleep(arguments["seconds"])
        os._exit(0)
    emit({"grandchild": grandchild})
    time.sleep(arguments["seconds"])
    return {}


def print_everywhere(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    print("printed by python")
    print("python's standard error", file=sys.stderr)
    os.write(1, b"written to descriptor 1\n")
    os.write(2, b"written to descriptor 2\n")
    subprocess.run(["echo", "printed by a grandchild"], check=True)
    return {}


def crash_at_exit(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    import atexit

    atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
    return {"safe": True}
