"""`host.json`: what a host must know beside the artifact's own inputs and outputs. What is in it is the target's."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from exporter.errors import CheckpointError


@dataclass(frozen=True)
class HostFile:
    """A dataclass that is kept as JSON."""

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises CheckpointError when the file is missing or damaged."""
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except (OSError, ValidationError) as fault:
            reason = fault.strerror if isinstance(fault, OSError) else f"{fault.error_count()} fields are wrong"
            raise CheckpointError(f"{path}: not readable ({reason})", "export again") from None
