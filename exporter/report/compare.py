"""Two reports side by side: what changed, what is only noise, and which budgets broke."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_tests.statistics import Interval, median_interval
from exporter.errors import UsageError
from exporter.registry import did_you_mean
from exporter.report.budget import Budget
from exporter.report.latency import Latency, shown_latency, why_not_shown

FIGURES = (
    "artifact.bytes",
    "artifact.weight_bytes",
    "kv_cache.bytes_per_token",
    "kv_cache.bytes_total",
    "parity.top1_agreement",
    "parity.mean_kl",
    "quality.perplexity_full_precision",
    "quality.perplexity_quantized",
    "quality.perplexity_artifact",
    "latency.ttft_ms",
    "latency.prefill_tokens_per_s",
    "latency.decode_ms.p50",
    "latency.decode_ms.p90",
    "latency.decode_ms.p99",
    "latency.decode_tokens_per_s",
    "latency.load_ms",
    "latency.peak_rss_bytes",
)
"""What a comparison shows; a budget may name any other number of the report."""
SAMPLED = {"latency.decode_ms.p50", "latency.decode_ms.mean", "latency.decode_tokens_per_s"}
"""Figures that move with the median of the decode times."""


@dataclass(frozen=True)
class Report:
    """A report as read from its file."""

    path: Path
    values: dict[str, Any]
    latency: Latency | None

    @staticmethod
    def read(path: Path) -> Report:
        """Of a file, or of an export's folder. Raises UsageError when it is no report."""
        file = path / "report.json" if path.is_dir() else path
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as fault:
            raise UsageError(
                f"{file}: not readable ({fault})", "pass a report.json, or the folder of an export"
            ) from None
        if not isinstance(values, dict) or "artifact" not in values:
            raise UsageError(f"{file}: not the report of one export", "pass a report.json, or the folder of an export")
        return Report(file, values, shown_latency(values.get("latency")))

    def number(self, name: str) -> float | None:
        """Of a dotted key; latency only where it may be shown."""
        value: Any = self.values
        if name.split(".")[0] == "latency":
            value = None if self.latency is None else {"latency": self.latency.section}
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def has(self, name: str) -> bool:
        """Whether the key could hold a number: latency's do even where nothing was measured."""
        return self.number(name) is not None or name in FIGURES

    def place(self) -> str:
        """Where latency was measured and on what: two of these must agree before times are compared."""
        if self.latency is None:
            return ""
        section = self.latency.section
        identity = (section.get("conditions") or {}).get("identity") or {}
        parts = (section["device"], identity.get("model"), identity.get("soc"), identity.get("processor"))
        settings = (section["prompt_tokens"], section["generated_tokens"], section["threads"], section["engine"])
        return ", ".join(str(part) for part in (*parts, *settings) if part is not None)

    def interval(self) -> Interval | None:
        """Where the median decode time of the longest prompt lies."""
        return None if self.latency is None else median_interval(self.latency.samples(-1))


@dataclass(frozen=True)
class Change:
    """One figure in both reports. `noise` says that the difference is within it; `reason` why there is nothing to compare."""

    name: str
    old: float | None
    new: float | None
    noise: bool
    reason: str

    @property
    def percent(self) -> float | None:
        """Of the old one."""
        if self.old is None or self.new is None or not self.old or self.reason:
            return None
        return 100 * (self.new / self.old - 1)


@dataclass(frozen=True)
class Verdict:
    """A budget and how it fared."""

    budget: Budget
    kept: bool
    text: str


@dataclass(frozen=True)
class Comparison:
    """All changes and verdicts."""

    old: Report
    new: Report
    changes: list[Change]
    verdicts: list[Verdict]

    @property
    def broken(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.kept]

    def to_json(self) -> dict[str, Any]:
        changes = [{**change.__dict__, "percent": change.percent} for change in self.changes]
        verdicts = [{"budget": item.budget.text, "kept": item.kept, "text": item.text} for item in self.verdicts]
        return {"changes": changes, "budgets": verdicts}


def compare(old: Report, new: Report, budgets: list[Budget]) -> Comparison:
    """Raises UsageError when a budget names what is in neither report."""
    named = {budget: full_name(budget.name, new) for budget in budgets}
    names = [name for name in FIGURES if old.number(name) is not None or new.number(name) is not None]
    changes = {name: change_of(name, old, new) for name in dict.fromkeys([*names, *named.values()])}
    verdicts = [judge(budget, changes[name], new) for budget, name in named.items()]
    return Comparison(old, new, list(changes.values()), verdicts)


def full_name(name: str, report: Report) -> str:
    """Keys of latency may be named without their section, since budgets are mostly about them."""
    for candidate in (name, f"latency.{name}"):
        if report.has(candidate):
            return candidate
    known = [*FIGURES, *(figure.removeprefix("latency.") for figure in FIGURES)]
    raise UsageError(f"budget {name}: no such number in {report.path}", did_you_mean(name, known))


def change_of(name: str, old: Report, new: Report) -> Change:
    """Durations of two devices, or of two settings, are not compared."""
    before, after = old.number(name), new.number(name)
    reason, noise = "", False
    if name.startswith("latency."):
        unknown = next((report for report in (old, new) if report.latency is None), None)
        if unknown is not None:
            reason = f"{unknown.path}: {why_not_shown(unknown.values.get('latency'))}"
        elif old.place() != new.place():
            reason = f"measured under other conditions: {old.place()} | {new.place()}"
        elif name in SAMPLED:
            first, second = old.interval(), new.interval()
            noise = first is not None and second is not None and first.overlaps(second)
    return Change(name, before, after, noise, reason)


def judge(budget: Budget, change: Change, new: Report) -> Verdict:
    """A limit holds for the figure itself. A change breaks it only beyond the noise of the samples. What is not known is not kept."""
    if change.new is None:
        absent = (
            why_not_shown(new.values.get("latency")) if change.name.startswith("latency.") else "not in the new report"
        )
        return Verdict(budget, False, f"{budget.text}: {absent}")
    limit = None if budget.relative and change.reason else budget.limit(change.old)
    if limit is None:
        return Verdict(
            budget, False, f"{budget.text}: nothing to compare with ({change.reason or 'not in the old report'})"
        )
    kept = budget.keeps(change.new, limit)
    said = f"{budget.text}: {change.new:.6g}" + (f", limit {limit:.6g}" if budget.relative else "")
    if not kept and budget.relative and change.noise:
        return Verdict(budget, True, f"{said} (within noise)")
    return Verdict(budget, kept, said)
