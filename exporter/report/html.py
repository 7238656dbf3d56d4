"""report.html: the report as a page of its own, without network, script or font from elsewhere."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from exporter.report.charts import Bar, Line, bar_chart, histogram, line_chart
from exporter.report.latency import Latency, shown_latency, why_not_shown
from exporter.report.official import figures_text, why_no_figures
from exporter.report.text import cache_type, size_text
from exporter.targets.base import Obtained

REPORT_PAGE = "report.html"
TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Row:
    """One figure: what, how much, how obtained."""

    name: str
    value: str
    obtained: str = ""


@dataclass(frozen=True)
class DeviceView:
    """One device. Without latency there is only the reason why."""

    name: str
    obtained: str
    reason: str
    tokens: str
    rows: list[Row]
    prompts: list[list[str]]
    charts: list[Markup]
    conditions: list[Row]


@dataclass(frozen=True)
class OfficialView:
    """What a tool of others said of itself on one device."""

    title: str
    tokens: str
    reason: str
    definition: str
    rows: list[Row]


def write_html(report: dict[str, Any], folder: Path) -> None:
    """Beside report.json."""
    (folder / REPORT_PAGE).write_text(render(report), encoding="utf-8")


def render(report: dict[str, Any]) -> str:
    """The whole page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = report.get("latency_devices") or []
    return environment.get_template(TEMPLATE).render(
        report=report,
        sizes=_sizes(report),
        parity=_parity(report),
        perplexity=Markup(_perplexity(report)),
        stages=Markup(_stages(report)),
        export=_export(report),
        devices=[device_view(section) for section in sections],
        official=[official_view(section) for section in report.get("official_latency") or []],
        not_measured=why_not_shown(None),
        definitions=sections[0]["definitions"] if sections else {},
    )


def _sizes(report: dict[str, Any]) -> list[Row]:
    artifact, cache, plan = report["artifact"], report["kv_cache"], report["plan"]
    counted, kept = artifact["obtained"], cache["obtained"]
    tied = "once" if artifact["tied_embedding_stored_once"] else f"twice: {artifact['tied_embedding_reason']}"
    return [
        Row("files that ship", size_text(artifact["bytes"]), counted),
        Row("weights", size_text(artifact["weight_bytes"]), counted),
        Row("token table stored", tied, counted),
        Row(
            "cache",
            f"{cache_type(cache['bits'])}, {size_text(cache['bytes_total'])} for {plan['context']} tokens",
            kept,
        ),
        Row("cache per token", f"{cache['bytes_per_token']} B", kept),
        Row("memory on the device", size_text(plan["device_memory_bytes"]), plan["obtained"]),
        Row("read per token", size_text(plan["bytes_read_per_token"]), plan["obtained"]),
    ]


def _parity(report: dict[str, Any]) -> list[Row]:
    parity = report["parity"]
    obtained, graph = parity["obtained"], parity.get("graph")
    found = graph or parity
    kind = Obtained.GRAPH if graph else obtained
    rows = [
        *([Row("parity of the artifact", obtained)] if graph else []),
        Row("same best token", f"{100 * found['top1_agreement']:.2f} % of {found['tokens']}", kind),
        Row("of the others, near-ties", f"{found['near_ties']} of {found['disagreements']}", kind),
        Row("mean KL divergence", f"{found['mean_kl']:.2e} nats", kind),
        Row("largest difference of a logit", f"{found['max_abs_error']:.3g}", kind),
    ]
    for gate in parity["gates"]:
        limit = "off" if gate["limit"] is None else f"limit {gate['limit']:g}"
        rows.append(
            Row(gate["name"], f"{gate['value']:.4g} ({limit}): {'passed' if gate['passed'] else 'FAILED'}", "gate")
        )
    return rows


def _perplexity(report: dict[str, Any]) -> str:
    quality = report["quality"]
    last = ("traced graph", "graph") if quality["perplexity_artifact"] is None else ("artifact", "artifact")
    phases = (("full precision", "full_precision"), ("quantized", "quantized"), last)
    values = [(name, quality[f"perplexity_{key}"]) for name, key in phases]
    return bar_chart([Bar(name, value, f"{value:.3f}") for name, value in values], "Perplexity in three phases")


def _stages(report: dict[str, Any]) -> str:
    bars = [Bar(stage["name"], stage["wall_s"], f"{stage['wall_s']:.1f} s") for stage in report["export"]["stages"]]
    return bar_chart(bars, "Time of each stage of the export")


def _export(report: dict[str, Any]) -> list[Row]:
    export = report["export"]
    return [
        Row("whole export", f"{export['wall_s']:.1f} s, {export['cpu_s']:.1f} CPU s", export["obtained"]),
        Row("peak memory of the exporter", size_text(export["peak_rss_bytes"]), export["obtained"]),
    ]


def device_view(section: dict[str, Any]) -> DeviceView:
    """Figures only of a latency that may be shown."""
    latency, check = shown_latency(section), section.get("token_check") or {}
    tokens = f"{check['tokens']} token ids, all as the oracle's" if check.get("equal") else "token ids not confirmed"
    if check.get("near_ties"):
        tokens = f"{check['tokens']} token ids; {check['near_ties']} differ at near-ties of the oracle, accepted"
    rows, prompts, charts = ([], [], []) if latency is None else (_rows(latency), _prompts(latency), _charts(latency))
    reason = "" if latency else why_not_shown(section)
    return DeviceView(
        section["device"], section["obtained"], reason, tokens, rows, prompts, charts, _conditions(section)
    )


def official_view(section: dict[str, Any]) -> OfficialView:
    """Figures only of a tool that ended well, on a device whose times are its own."""
    reason = why_no_figures(section)
    obtained, prompts = section["obtained"], [] if reason else section["by_prompt"]
    rows = [Row(f"prompt of {item['prompt_tokens']} tokens", figures_text(item), obtained) for item in prompts]
    title = f"{section['tool']} on {section['device']}"
    return OfficialView(title, section["token_check"], reason or "", section["definition"] or "", rows)


def _rows(latency: Latency) -> list[Row]:
    section, floor = latency.section, latency.section["floor"]
    obtained = section["obtained"]
    threads = section["threads"] or "as the engine chooses"
    return [
        Row("engine", section["engine"]),
        Row("threads, cores allowed", f"{threads}; {section['affinity'] or 'not said'}"),
        Row("first token", f"{section['ttft_ms']:.2f} ms after {section['prompt_tokens']} tokens", obtained),
        Row("per token, median", f"{section['decode_ms']['p50']:.3f} ms", obtained),
        Row("floor per token", f"{floor['ms']:.3f} ms: {size_text(floor['bytes_per_token'])} at {floor['read_gb_s']:.1f} GB/s",
            f"{obtained} bandwidth, estimated bytes"),
        Row("median over floor", f"{floor['decode_over_floor']:.1f} times"),
        Row("bandwidth of memory", f"{floor['memory_read_gb_s']:.1f} GB/s", obtained),
        Row("energy per token", _energy(section["energy"]), obtained if section["energy"]["device_watts"] else ""),
        Row("load", f"{section['load_ms']:.0f} ms", obtained),
        Row("peak memory", size_text(section["peak_rss_bytes"]), obtained),
        Row("cache", size_text(section["kv_bytes"]), obtained),
    ]  # fmt: skip


def _energy(energy: dict[str, Any]) -> str:
    if energy["device_watts"] is None:
        return "not readable"
    return f"{energy['joules_per_token']:.4f} J, at {energy['device_watts']:.2f} W from the battery"


def _prompts(latency: Latency) -> list[list[str]]:
    """A row per figure and a column per prompt, which a narrow screen holds."""
    prompts = latency.section["by_prompt"]
    decodes = [prompt["decode_ms"] for prompt in prompts]

    def row(name: str, cells: list[str]) -> list[str]:
        return [name, *cells]

    return [
        row("prompt, tokens", [str(prompt["prompt_tokens"]) for prompt in prompts]),
        row("first token, ms", [f"{prompt['ttft_ms']:.2f}" for prompt in prompts]),
        row("prefill, tokens/s", [f"{prompt['prefill_tokens_per_s']:.0f}" for prompt in prompts]),
        row("per token p50, ms", [f"{decode['p50']:.3f}" for decode in decodes]),
        row("per token p90, ms", [f"{decode['p90']:.3f}" for decode in decodes]),
        row(
            "per token p99, ms", ["withheld" if decode["p99"] is None else f"{decode['p99']:.3f}" for decode in decodes]
        ),
        row("mean ± std, ms", [f"{decode['mean']:.3f} ± {decode['std']:.3f}" for decode in decodes]),
        row("decode, tokens/s", [f"{prompt['decode_tokens_per_s']:.1f}" for prompt in prompts]),
        row("first repetition, ms", [f"{prompt['first_repetition_decode_ms']:.3f}" for prompt in prompts]),
        row("last repetition, ms", [f"{prompt['last_repetition_decode_ms']:.3f}" for prompt in prompts]),
    ]


def _charts(latency: Latency) -> list[Markup]:
    prompts = latency.section["by_prompt"][-2:]
    lines, groups = [], []
    for prompt in prompts:
        runs = [item["decode_ms"] for item in prompt["repetitions"]]
        medians = [statistics.median(values) for values in zip(*runs, strict=True)]
        start, name = prompt["prompt_tokens"] + 1, f"prompt of {prompt['prompt_tokens']}"
        lines.append(Line(name, tuple((float(start + at), value) for at, value in enumerate(medians))))
        groups.append((name, [value for run in runs for value in run]))
    at_position = line_chart(
        lines, "position", "ms per token", "Latency against position", latency.section["floor"]["ms"]
    )
    return [Markup(at_position), Markup(histogram(groups, "ms per token", "Distribution of the time per token"))]


def _conditions(section: dict[str, Any]) -> list[Row]:
    conditions = section.get("conditions")
    if not conditions:
        return []
    identity, before, after = conditions["identity"], conditions["before"], conditions["after"] or {}
    machine = [
        identity[key] for key in ("model", "soc", "system", "processor", "architecture", "kernel") if identity[key]
    ]
    rows, silent = [Row("machine", ", ".join(machine) or "not said")], []
    for name, key, unit in (
        ("governor", "governor", ""),
        ("load", "load_1min", ""),
        ("hottest zone", "celsius", " °C"),
        ("thermal status", "thermal_status", " of 6"),
        ("battery", "battery_percent", " %"),
        ("battery temperature", "battery_celsius", " °C"),
    ):
        values = [snapshot.get(key) for snapshot in (before, after)]
        if values == [None, None]:
            silent.append(name)
            continue
        rows.append(Row(name, " → ".join("not said" if value is None else f"{value}{unit}" for value in values)))
    clocks = [max(snapshot["khz"]) / 1e6 for snapshot in (before, *conditions["during"]) if snapshot["khz"]]
    if clocks:
        rows.append(Row("fastest clock", f"{min(clocks):.2f} to {max(clocks):.2f} GHz"))
    silent += [] if clocks else ["clocks"]
    rows += [Row("not readable", ", ".join(silent))] if silent else []
    marked = sum(item["disturbed"] for prompt in section["by_prompt"] for item in prompt["repetitions"])
    rows.append(Row("disturbed repetitions", str(marked)))
    return rows
