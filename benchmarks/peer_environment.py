"""The peers' virtual environment and the scripts that run in it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

SCRIPTS = Path(__file__).parent / "peers"


def make_environment(folder: Path) -> None:
    """Compiles for minutes at first use."""
    if not (folder / "venv").is_dir():
        subprocess.run(["bash", str(SCRIPTS / "setup.sh"), str(folder)], check=True)


def peer_python(folder: Path) -> str:
    return str(folder / "venv/bin/python")


def run_script(python: str, script: str, *arguments: str) -> list[dict]:
    """Runs benchmarks/peers/<script>; returns the JSON objects of its standard output, one per line."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent.parent)}
    command = [python, str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
