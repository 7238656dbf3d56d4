"""The `latency` section of a report, and the one way to show what is in it.

Durations of an emulator or simulator say nothing about a device: not even the order of two engines survives. So the section holds none
unless they were measured, and whoever shows latency asks `shown_latency`, which gives none for a section that claims otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from device_tests.conditions import Conditions
from device_tests.harness import Measurement
from device_tests.statistics import DEFINITIONS, PromptFigures
from exporter.targets.base import Obtained


class Status(StrEnum):
    """Whether a measurement may be believed."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    VOID = "void"
    UNCHECKED = "unchecked"
    """A tool of others ended well, and its token ids are not known: no latency."""


@dataclass(frozen=True)
class TokenCheck:
    """Token ids of every repetition against the oracle's. `near_ties` are tokens that differ where the oracle sees a near-tie, and were
    accepted because the user said so."""

    reference: str
    tokens: int
    equal: bool
    near_ties: int
    difference: str = ""


class NotDeviceLatency(ValueError):
    """Somebody asked for the latency of a device where there is none. A programming error: ask `shown_latency`."""


@dataclass(frozen=True)
class Latency:
    """A section that may be shown. Only `shown_latency` makes one."""

    section: dict[str, Any]

    def __post_init__(self) -> None:
        if self.section.get("obtained") != Obtained.MEASURED or self.section.get("status") != Status.COMPLETE:
            raise NotDeviceLatency(why_not_shown(self.section))

    def samples(self, prompt: int) -> list[list[float]]:
        """Decode times in ms, one list per repetition."""
        return [item["decode_ms"] for item in self.section["by_prompt"][prompt]["repetitions"]]


def shown_latency(section: dict[str, Any] | None) -> Latency | None:
    """The latency of a device, or None where nothing was measured on one to the end."""
    if not section or section.get("obtained") != Obtained.MEASURED or section.get("status") != Status.COMPLETE:
        return None
    return Latency(section)


def why_not_shown(section: dict[str, Any] | None) -> str:
    """One line that stands where figures would."""
    if not section:
        return "not measured; see: slm-export bench"
    if section.get("status") != Status.COMPLETE:
        return f"{section.get('status')}: {section.get('failure')}"
    return f"{section.get('obtained')}: the time of another machine, which says nothing about a device; none is shown"


def latency_section(
    measurement: Measurement, bytes_per_token: int, check: TokenCheck | None, void: str | None
) -> dict[str, Any]:
    """One device. Figures are null where they were not measured on it, or not to the end."""
    device, request, heard = measurement.device, measurement.request, measurement.heard
    reason = str(measurement.failure) if measurement.failure else void
    status = Status.PARTIAL if measurement.failure else Status.VOID if void else Status.COMPLETE
    real = device.obtained is Obtained.MEASURED
    figures = [_figures(measurement, number) for number in range(len(request.prompts))] if real and not reason else []
    longest = figures[-1] if figures else None
    loaded, memory = heard.loaded, heard.memory
    return {
        "device": device.name,
        "obtained": device.obtained,
        "status": status,
        "failure": reason,
        "engine": loaded.engine if loaded else None,
        "prompt_tokens": len(request.prompts[-1]),
        "generated_tokens": request.generated_tokens,
        "warm_up": request.warm_up,
        "timed_repetitions": request.repetitions,
        **_headline(longest),
        "load_ms": loaded.load_ns / 1e6 if loaded and real else None,
        "threads": loaded.threads if loaded else None,
        "affinity": loaded.affinity if loaded else None,
        "peak_rss_bytes": memory.peak_rss_bytes if memory and real else None,
        "kv_bytes": memory.kv_bytes if memory else None,
        "energy": _energy(measurement, longest),
        "token_check": asdict(check) if check else None,
        "floor": _floor(measurement, bytes_per_token, longest),
        "by_prompt": [_by_prompt(measurement, number, figures) for number in range(len(request.prompts))],
        "conditions": _conditions(measurement.conditions),
        "definitions": DEFINITIONS,
    }


def _figures(measurement: Measurement, prompt: int) -> PromptFigures:
    return PromptFigures.of(len(measurement.request.prompts[prompt]), measurement.runs(prompt))


def _headline(figures: PromptFigures | None) -> dict[str, Any]:
    """Keys that stand both at the top of the section, for the longest prompt, and for each prompt."""
    return {
        "ttft_ms": figures.ttft_ms if figures else None,
        "prefill_tokens_per_s": figures.prefill_tokens_per_s if figures else None,
        "decode_ms": asdict(figures.decode_ms) if figures else None,
        "decode_tokens_per_s": figures.decode_tokens_per_s if figures else None,
        "first_repetition_decode_ms": figures.first_decode_ms if figures else None,
        "last_repetition_decode_ms": figures.last_decode_ms if figures else None,
    }


def _by_prompt(measurement: Measurement, prompt: int, figures: Sequence[PromptFigures]) -> dict[str, Any]:
    """Raw samples stay, so that whoever doubts a figure can compute it again."""
    real = measurement.device.obtained is Obtained.MEASURED
    pairs = zip(measurement.runs(prompt), measurement.disturbed(prompt), strict=True)
    return {
        "prompt_tokens": len(measurement.request.prompts[prompt]),
        **_headline(figures[prompt] if figures else None),
        "repetitions": [
            {"ttft_ms": run.ttft_ms, "decode_ms": list(run.decode_ms), "disturbed": disturbed}
            for run, disturbed in pairs
            if real
        ],
    }


def _floor(measurement: Measurement, bytes_per_token: int, figures: PromptFigures | None) -> dict[str, Any]:
    """Best time in which the runner read a buffer as large as what a token must read, again and again: where all of it fits into the
    processor's cache, so does the buffer. A larger buffer tells the bandwidth of memory."""
    probes = measurement.heard.probes if measurement.device.obtained is Obtained.MEASURED else []
    rates = [probe.bytes / min(probe.ns) for probe in probes]
    ms = bytes_per_token / rates[0] / 1e6 if rates else None
    return {
        "bytes_per_token": bytes_per_token,
        "read_gb_s": rates[0] if rates else None,
        "memory_read_gb_s": rates[-1] if rates else None,
        "ms": ms,
        "decode_over_floor": figures.decode_ms.p50 / ms if figures and ms else None,
    }


def _energy(measurement: Measurement, figures: PromptFigures | None) -> dict[str, Any]:
    """Of the whole device, screen and radio included, while it runs from its battery; null where it does not say."""
    watts = measurement.conditions.mean_watts() if figures and measurement.conditions else None
    per_token = watts * figures.decode_ms.mean / 1e3 if figures and watts is not None else None
    return {"device_watts": watts, "joules_per_token": per_token}


def _conditions(conditions: Conditions | None) -> dict[str, Any] | None:
    return conditions.to_json() if conditions else None


def latency_lines(section: dict[str, Any]) -> list[str]:
    """For a terminal."""
    title = f"{section['device']:<16} "
    check = section["token_check"]
    tokens = f"{check['tokens']} token ids as the oracle's" if check and check["equal"] else "token ids not compared"
    if check and check["near_ties"]:
        tokens = f"{check['tokens']} token ids, {check['near_ties']} of them near-ties accepted"
    latency = shown_latency(section)
    if latency is None:
        return [
            f"{title}{tokens if section['status'] == Status.COMPLETE else 'no figures'}",
            f"  {why_not_shown(section)}",
        ]
    lines = [f"{title}{section['engine']}, {tokens} ({section['obtained']})"]
    for prompt in section["by_prompt"]:
        decode = prompt["decode_ms"]
        tail = "" if decode["p99"] is None else f", p99 {decode['p99']:.2f}"
        lines.append(
            f"  prompt {prompt['prompt_tokens']:>5} tokens: first token {prompt['ttft_ms']:.2f} ms "
            f"({prompt['prefill_tokens_per_s']:.0f} tokens/s), then p50 {decode['p50']:.3f}, p90 {decode['p90']:.3f}{tail} ms "
            f"({prompt['decode_tokens_per_s']:.1f} tokens/s)"
        )
    floor = section["floor"]
    lines.append(
        f"  floor {floor['ms']:.3f} ms: {floor['bytes_per_token'] / 1e6:.2f} MB per token at {floor['read_gb_s']:.1f} GB/s; "
        f"decode takes {floor['decode_over_floor']:.1f} times that"
    )
    memory, kept = section["peak_rss_bytes"] / 1e6, section["kv_bytes"] / 1e6
    lines.append(f"  load {section['load_ms']:.0f} ms, peak memory {memory:.1f} MB, cache {kept:.2f} MB")
    energy = section["energy"]
    if energy["device_watts"] is not None:
        lines.append(f"  {energy['device_watts']:.2f} W from the battery, {energy['joules_per_token']:.4f} J per token")
    disturbed = sum(item["disturbed"] for prompt in section["by_prompt"] for item in prompt["repetitions"])
    if disturbed:
        lines.append(f"  {disturbed} repetitions while the device grew hotter or lowered its clocks")
    return lines
