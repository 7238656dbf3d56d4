"""What a host must know beside the methods' own signatures: `host.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from exporter.errors import CheckpointError


@dataclass(frozen=True)
class HostLayout:
    """Longest conversation, most tokens of one call, size of the vocabulary, threads (0: the runtime chooses), and whether the program
    calls operators of this project's library."""

    context: int
    chunk: int
    vocab_size: int
    threads: int
    own_operators: bool

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> HostLayout:
        """Raises CheckpointError when the file is missing or damaged."""
        try:
            return TypeAdapter(HostLayout).validate_json(path.read_bytes())
        except (OSError, ValidationError) as fault:
            reason = fault.strerror if isinstance(fault, OSError) else f"{fault.error_count()} fields are wrong"
            raise CheckpointError(f"{path}: not readable ({reason})", "export again") from None
