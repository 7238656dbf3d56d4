"""Budgets: limits on figures of a report, in a file of their own, since they belong to a product and not to a recipe.

budgets:
  - decode_ms.p50 <= 25
  - artifact.bytes <= +1%
  - parity.top1_agreement >= 0.99
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import yaml

from exporter.errors import UsageError

FORM = "write NAME <= NUMBER, or NAME <= +PERCENT% against the old report"
PATTERN = re.compile(
    r"(?P<name>[a-z]\w*(\.\w+)*)\s*(?P<side><=|>=)\s*(?P<number>[+-]?\d+(\.\d+)?([eE][+-]?\d+)?)\s*(?P<percent>%)?"
)


class Side(StrEnum):
    """On which side of the limit a figure must be."""

    AT_MOST = "<="
    AT_LEAST = ">="


@dataclass(frozen=True)
class Budget:
    """`number` is the limit itself, or percent of change against the old report."""

    name: str
    side: Side
    number: float
    relative: bool
    text: str

    @staticmethod
    def parse(text: str) -> Budget:
        """Raises ValueError with the form that is expected."""
        match = PATTERN.fullmatch(" ".join(text.split()))
        if match is None:
            raise ValueError(FORM)
        signed = match["number"][0] in "+-"
        if signed != bool(match["percent"]):
            raise ValueError("a change is written with its sign and %, a limit without both")
        return Budget(match["name"], Side(match["side"]), float(match["number"]), signed, text)

    def limit(self, old: float | None) -> float | None:
        """None where a change has nothing to be compared with."""
        if not self.relative:
            return self.number
        return None if old is None else old * (1 + self.number / 100)

    def keeps(self, value: float, limit: float) -> bool:
        return value <= limit if self.side is Side.AT_MOST else value >= limit


def read_budgets(path: Path) -> list[Budget]:
    """Raises UsageError listing every line that is no budget."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise UsageError(f"{path}: not readable ({' '.join(str(fault).split())})", FORM) from None
    lines = values.get("budgets") if isinstance(values, dict) else None
    if not isinstance(lines, list) or not lines or set(values) != {"budgets"}:
        raise UsageError(f"{path}: must hold one list `budgets`", FORM)
    found, problems = [], []
    for line in lines:
        try:
            found.append(Budget.parse(str(line)))
        except ValueError as fault:
            problems.append(f"{line}: {fault}")
    if problems:
        raise UsageError(f"{path}: {' | '.join(problems)}", "see docs/guides/measure-latency.md")
    return found
