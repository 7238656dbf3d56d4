"""The one error hierarchy. Every class maps to a process exit code; `cli.py` prints the message and exits with it.

A message says what happened and where; `next_step` says what to do about it.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes, stable across releases: CI jobs branch on them."""

    SUCCESS = 0
    INTERNAL = 1
    USAGE = 2
    REFUSED = 3
    GATE_FAILED = 4
    BUDGET_EXCEEDED = 5
    TOOLCHAIN_MISSING = 6
    INTERRUPTED = 130


class SlmExportError(Exception):
    """Base of every error that a user can cause or cure."""

    exit_code: ExitCode = ExitCode.INTERNAL

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message}; {self.next_step}" if self.next_step else self.message


class UsageError(SlmExportError):
    """A wrong option, path or input text."""

    exit_code = ExitCode.USAGE


class RecipeError(UsageError):
    """A recipe that does not fit the schema. `problems` holds one line per fault, all found at once."""

    def __init__(self, source: str, problems: list[str], next_step: str = "") -> None:
        self.problems = problems
        text = f" {problems[0]}" if len(problems) == 1 else "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"{source}:{text}", next_step)


class CheckpointError(UsageError):
    """A checkpoint folder that cannot be read as a decoder."""


class PlanRefused(SlmExportError):
    """A combination that the target cannot carry, found before any weight is read."""

    exit_code = ExitCode.REFUSED


class OperatorsLacking(SlmExportError):
    """A Core ML package holds operators that the interpreter does not have, found before any weight is read."""

    exit_code = ExitCode.REFUSED


class GateFailed(SlmExportError):
    """A parity, quality or integrity gate failed; nothing was left in place."""

    exit_code = ExitCode.GATE_FAILED


class BudgetExceeded(SlmExportError):
    """A size or latency budget was exceeded."""

    exit_code = ExitCode.BUDGET_EXCEEDED


class ToolchainMissing(SlmExportError):
    """A compiler, simulator, library or device is missing or does not answer."""

    exit_code = ExitCode.TOOLCHAIN_MISSING


class ChildFailed(SlmExportError):
    """A child process crashed, timed out or was killed; the log file says more."""

    exit_code = ExitCode.INTERNAL
