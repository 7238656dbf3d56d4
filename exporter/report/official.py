"""What tools of others say of themselves, in a section of its own: no figure of it is `latency`, and no budget can name one.

Their token ids are not known, so nothing says that they ran the model rightly, and neither are the times of single tokens.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from device_tests.official import OfficialFigures
from device_tests.official_run import OfficialMeasurement
from exporter.report.latency import Status
from exporter.targets.base import Obtained

NOT_CHECKED = "tokens not checked against the oracle: the tool prints no ids"
DURATIONS = ("load_ms", "ttft_ms", "prefill_tokens_per_s", "decode_tokens_per_s", "whole_tokens_per_s")
COUNTS = ("prompt_tokens", "generated_tokens")


def official_section(found: OfficialMeasurement) -> dict[str, Any]:
    """One device. Durations are null unless they were measured on it, to the end."""
    job, real = found.job, found.device.obtained is Obtained.MEASURED
    definitions = {item.definition for figures in found.figures for item in figures}
    return {
        "device": found.device.name,
        "obtained": found.device.obtained,
        "status": Status.PARTIAL if found.failure else Status.UNCHECKED,
        "failure": str(found.failure) if found.failure else None,
        "tool": job.tool.name,
        "definition": "; ".join(sorted(definitions)) or None,
        "token_check": NOT_CHECKED,
        "generated_tokens": job.generated_tokens,
        "warm_up": job.warm_up,
        "timed_repetitions": job.repetitions,
        "by_prompt": [_by_prompt(found, number, real and not found.failure) for number in range(len(job.prompts))],
        "conditions": found.conditions.to_json() if found.conditions else None,
    }


def _by_prompt(found: OfficialMeasurement, number: int, shown: bool) -> dict[str, Any]:
    """Medians over the runs, and the runs. `decode_ms` is there to say that no tool gives it."""
    runs = [_figures(item, shown) for item in found.figures[number]] if number < len(found.figures) else []
    return {
        "prompt_tokens": found.job.prompts[number].tokens,
        "command": found.commands[number] if number < len(found.commands) else None,
        **{name: _median([run[name] for run in runs]) for name in DURATIONS},
        "decode_ms": None,
        "runs": runs,
    }


def _figures(figures: OfficialFigures, shown: bool) -> dict[str, Any]:
    said = asdict(figures)
    return {**{name: said[name] if shown else None for name in DURATIONS}, **{name: said[name] for name in COUNTS}}


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known and len(known) == len(values) else None


def figures_text(prompt: dict[str, Any]) -> str:
    """The figures of one prompt that are known."""
    parts = [
        ("first token", prompt["ttft_ms"], "ms"),
        ("prompt", prompt["prefill_tokens_per_s"], "tokens/s"),
        ("then", prompt["decode_tokens_per_s"], "tokens/s"),
        ("prompt and all", prompt["whole_tokens_per_s"], "tokens/s"),
        ("load", prompt["load_ms"], "ms"),
    ]
    return ", ".join(f"{name} {value:.2f} {unit}" for name, value, unit in parts if value is not None)


def why_no_figures(section: dict[str, Any]) -> str | None:
    """One line that stands where figures would, or None where there are some."""
    if section["status"] != Status.UNCHECKED:
        return f"{section['status']}: {section['failure']}"
    if section["obtained"] != Obtained.MEASURED:
        return f"{section['obtained']}: the time of another machine, which says nothing about a device; none is shown"
    return None


def official_lines(section: dict[str, Any]) -> list[str]:
    """For a terminal."""
    lines = [
        f"{section['device']:<16} {section['tool']}'s own figures, {section['token_check']} ({section['obtained']})"
    ]
    reason = why_no_figures(section)
    if reason is not None:
        return [*lines, f"  {reason}"]
    for prompt in section["by_prompt"]:
        lines.append(
            f"  prompt {prompt['prompt_tokens']:>5} tokens: {figures_text(prompt)}; times of single tokens not known"
        )
    return [*lines, f"  {section['definition']}"]
