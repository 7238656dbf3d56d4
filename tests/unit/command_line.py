"""One command of the console entry point: its arguments, its exit code and both streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = str(REPOSITORY / "examples" / "model")


@dataclass(frozen=True)
class Outcome:
    """Exit code and both streams of one command."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def plan_arguments(*arguments: str) -> list[str]:
    return ["plan", "--recipe", "android-npu", "--model", MODEL, *arguments]
