"""Runs the command line as a user would: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAST = tuple(part for setting in ("verify.windows=1", "verify.decode_tokens=4") for part in ("--set", setting))
"""Enough text to wrap every ring of the bundled model more than twice."""


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """`report` or `manifest` of an export."""
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class SlmExport:
    """The command with a stage cache of its own."""

    repository: Path
    cache: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "exporter", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "exporter", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment(), timeout=900)

    def succeed(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self.run(*arguments)
        assert done.returncode == 0, f"{' '.join(arguments)}: exit {done.returncode}: {done.stderr}"
        return done

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.repository), "SLM_EXPORT_CACHE": str(self.cache), "COLUMNS": "200"}
