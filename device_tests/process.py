"""Programs on this host that stand for a runner or for a client of a device: lines as they come, time limits, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Finished:
    """Exit status (None when the time limit ended it) and both streams."""

    status: int | None
    output: str
    errors: str

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def reason(self) -> str:
        """The last line that says something."""
        lines = [line.strip() for line in (self.errors + "\n" + self.output).splitlines() if line.strip()]
        ended = "no answer within the time limit" if self.status is None else f"exit status {self.status}"
        return f"{ended}: {lines[-1]}" if lines else ended


def run_program(
    command: Sequence[str], timeout_s: float, source: Path | None = None, environment: Mapping[str, str] | None = None
) -> Finished:
    """Runs to the end, with a file as standard input. Raises nothing for a program that fails: the caller knows what that means."""
    with open(source or os.devnull, "rb") as stdin:
        try:
            process = _start(command, environment, subprocess.PIPE, stdin)
        except OSError as fault:
            return Finished(127, "", f"{command[0]}: {fault.strerror}")
        try:
            output, errors = process.communicate(timeout=timeout_s)
            return Finished(process.returncode, output.decode(errors="replace"), errors.decode(errors="replace"))
        except subprocess.TimeoutExpired as late:
            output, errors = late.output or b"", late.stderr or b""
            return Finished(None, output.decode(errors="replace"), errors.decode(errors="replace"))
        finally:
            _kill_group(process)


class LineStream:
    """A running program whose lines are read as they come. Its standard input stays open until it is closed: a runner ends with it."""

    def __init__(self, command: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the stream
        self._timed_out = threading.Event()
        self._process = _start(command, environment, self._errors, subprocess.PIPE)
        self._timer = threading.Timer(timeout_s, self._expire)
        self._timer.daemon = True
        self._timer.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def lines(self) -> Generator[str, None, Finished]:
        """Yields whole lines; returns how the program ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith(b"\n"):
                yield line.decode(errors="replace")
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace")
        return Finished(None if self._timed_out.is_set() else status, "", said)

    def close(self) -> None:
        """Ends the program and all that it started."""
        self._timer.cancel()
        _kill_group(self._process)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._errors.close()

    def _expire(self) -> None:
        self._timed_out.set()
        _kill_group(self._process)


def _start(
    command: Sequence[str], environment: Mapping[str, str] | None, errors: int | IO[bytes], stdin: int | IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(command),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
