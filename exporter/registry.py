"""One generic registry: named entries, collision errors, and "did you mean" for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Generic, TypeVar

from exporter.errors import UsageError

Entry = TypeVar("Entry")


def did_you_mean(name: str, known: list[str]) -> str:
    """A short hint: the nearest known name if one is close, and the list of all."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{hint}available: {', '.join(sorted(known))}"


class Registry(Generic[Entry]):
    """Maps names to entries of one kind (families, targets, quantizers, devices)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> Entry:
        """Registers `entry`. Raises ValueError when the name is taken: a programming error, not a user's."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> Entry:
        """Returns the entry. Raises UsageError naming the nearest known entry."""
        try:
            return self._entries[name]
        except KeyError:
            raise UsageError(f"unknown {self.kind} {name!r}", did_you_mean(name, self.names())) from None

    def names(self) -> list[str]:
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
