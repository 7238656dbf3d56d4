"""What is installed, and what each target lacks."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from dataclasses import dataclass

from exporter.targets.base import all_targets


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    name: str
    present: bool
    detail: str
    required: bool = True


def diagnose() -> list[Finding]:
    """Interpreter, memory, disk, packages and targets."""
    findings = [
        Finding("python", sys.version_info >= (3, 11), sys.version.split()[0]),
        Finding(
            "memory", True, f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB", required=False
        ),
        Finding("disk", True, f"{shutil.disk_usage('.').free / 1e9:.1f} GB free here", required=False),
    ]
    findings += [_package(name) for name in ("torch", "safetensors", "tokenizers")]
    targets = all_targets()
    problems = {name: targets.get(name).toolchain_problem() for name in targets}
    return findings + target_findings(problems)


def target_findings(problems: dict[str, str | None]) -> list[Finding]:
    """Each target is an extra of its own: what one lacks is required only where no other is ready."""
    none_ready = all(problems.values())
    return [
        Finding(f"target {name}", problem is None, problem or "ready", required=none_ready)
        for name, problem in problems.items()
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, f"pip install {name}")
