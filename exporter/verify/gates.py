"""Gates: named limits that fail the export."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.errors import GateFailed


@dataclass(frozen=True)
class Gate:
    """One limit. `limit` None means that the recipe switched it off."""

    name: str
    value: float
    limit: float | None
    smallest: bool = False

    @property
    def passed(self) -> bool:
        if self.limit is None:
            return True
        return self.value >= self.limit if self.smallest else self.value <= self.limit

    def __str__(self) -> str:
        if self.limit is None:
            return f"{self.name} {self.value:.6g} (gate off)"
        return f"{self.name} {self.value:.6g} ({'at least' if self.smallest else 'at most'} {self.limit:g})"


def require(gates: list[Gate], next_step: str) -> None:
    """Raises GateFailed naming every gate that failed."""
    failed = [str(gate) for gate in gates if not gate.passed]
    if failed:
        raise GateFailed(f"{len(failed)} gate{'s' * (len(failed) > 1)} failed: {'; '.join(failed)}", next_step)


def percent_rise(value: float, reference: float) -> float:
    """How much `value` exceeds `reference`, percent."""
    return 100 * (value / reference - 1)
