"""What a person sees while stages run: a live line on a terminal, one line per finished stage elsewhere."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


@dataclass(frozen=True)
class StageFigures:
    """Wall and processor seconds of one stage, children included."""

    name: str
    wall_s: float
    cpu_s: float


def cpu_seconds() -> float:
    """Processor time of this process and its finished children."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def peak_rss_bytes() -> int:
    """Largest resident set of this process or of any child so far."""
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Stage:
    """Handle of a running stage."""

    def __init__(self, display: Progress | None, task: TaskID | None) -> None:
        self._display, self._task = display, task
        self.note = ""

    def advance(self, share: float) -> None:
        """Share done, 0 to 1."""
        if self._display is not None and self._task is not None:
            self._display.update(self._task, completed=share)


class StageDisplay:
    """Runs stages under a display and remembers their times."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.figures: list[StageFigures] = []

    def announce(self, text: str) -> None:
        """A heading before the stages of one of several exports; their figures start anew."""
        self.figures = []
        if not self.quiet:
            self.console.print(text, highlight=False)

    @contextmanager
    def stage(self, name: str, log: Path | None = None) -> Iterator[Stage]:
        """Times the body. On a terminal a bar moves; afterwards one line stays."""
        wall, cpu = time.monotonic(), cpu_seconds()
        if self.quiet or not self.console.is_terminal:
            stage = Stage(None, None)
            yield stage
        else:
            columns = (SpinnerColumn(), TextColumn("{task.description:<10}"), BarColumn(), TimeElapsedColumn())
            with Progress(*columns, console=self.console, transient=True) as display:
                stage = Stage(display, display.add_task(name, total=1.0))
                yield stage
        figures = StageFigures(name, time.monotonic() - wall, cpu_seconds() - cpu)
        self.figures.append(figures)
        if not self.quiet:
            note = f"  {stage.note}" if stage.note else ""
            where = f"  log: {log}" if log is not None and log.exists() else ""
            self.console.print(f"  {name:<10} {figures.wall_s:7.1f} s{note}{where}", highlight=False, soft_wrap=True)
