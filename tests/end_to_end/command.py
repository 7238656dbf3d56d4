"""Runs the command line as a user would: in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from exporter.checkpoint.config import Config
from exporter.checkpoint.text import TextCodec
from exporter.quantize.quantized_checkpoint import load_quantized
from exporter.targets.base import VERIFICATION_FOLDER
from exporter.verify.greedy import greedy_reference

PROMPT = "Once upon a time, there was a little"


def overrides(*settings: str) -> tuple[str, ...]:
    return tuple(part for setting in settings for part in ("--set", setting))


FAST = overrides("verify.windows=1", "verify.decode_tokens=4", "verify.quality_windows=4")
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

    def verified(self, exported: Path) -> dict[str, Any]:
        """The figures that `verify` finds in the files of an export alone."""
        figures: dict[str, Any] = json.loads(self.succeed("verify", str(exported), "--json").stdout)
        return figures

    def require_changed_bytes_are_caught(self, exported: Path, names: tuple[str, ...], copy: Path) -> None:
        """One bit of each file is turned in a copy; `verify` names each of them, and no other, in one line."""
        shutil.copytree(exported, copy)
        for name in names:
            content = bytearray((copy / name).read_bytes())
            content[len(content) // 2] ^= 1
            (copy / name).write_bytes(content)
        failed = self.run("verify", str(copy))
        assert failed.returncode == 4
        assert all(f" {name} was changed" in failed.stderr for name in names)
        assert failed.stderr.count(" was changed") == len(names)
        assert len(failed.stderr.strip().splitlines()) == 1

    def require_greedy_text(self, exported: Path, count: int = 6) -> None:
        """`generate` writes what the oracle continues the prompt with, and nothing else: the same text every time."""
        arguments = ("generate", str(exported), "--prompt", PROMPT, "--max-tokens", str(count))
        written = self.succeed(*arguments).stdout
        config = Config.read(exported / "config.json")
        codec = TextCodec.read(exported, config, config.integer("vocab_size"))
        reference = greedy_reference(load_quantized(exported / VERIFICATION_FOLDER), codec.encode(PROMPT), count)
        assert written == codec.decode(list(reference.token_ids)) + "\n"
        assert written.split()[0].isalpha()

    def require_profile(self, exported: Path, operator: str) -> None:
        """`operator` computes the products of the bundled model, and the parts of a token's time sum up to it."""
        arguments = ("profile", str(exported), "--position", "70", "--tokens", "5", "--json")
        found = json.loads(self.succeed(*arguments).stdout)
        products = next(each for each in found["operators"] if each["name"] == operator)
        assert products["calls"] == 25  # four products in each of six layers, and the head
        accounted = sum(each["ms"] for each in found["operators"]) + found["between_operators_ms"]
        assert found["ms_per_token"]["traced_p50"] <= accounted * 1.01
        assert found["bytes_per_token"]["weights"] > 3_000_000
        assert found["read_gb_s"]["effective"] > 0
        assert self.run("profile", str(exported), "--position", "510").returncode == 2


def export_fixture(*arguments: str, model: str | None = None) -> Any:
    """A fixture: the folder of one export with these arguments, which tests share. `model` names the fixture of another model than the
    bundled one."""

    @pytest.fixture(scope="module")
    def exported(request: pytest.FixtureRequest, exported_once: Callable[..., Path]) -> Path:
        of_model = () if model is None else ("--model", str(request.getfixturevalue(model)))
        return exported_once(*arguments, *of_model)

    return exported
