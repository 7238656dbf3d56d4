"""Reports as plain lines for a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.plan import Plan
from exporter.report.latency import latency_lines
from exporter.verify.gates import percent_rise


def size_text(count: int) -> str:
    """Bytes in decimal units, as phone makers count them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.2f} {unit}"
    return f"{count} B"


def cache_type(bits: int) -> str:
    """INT4, INT8, FP16 or FP32."""
    return f"{'FP' if bits >= 16 else 'INT'}{bits}"


def plan_lines(plan: Plan) -> list[str]:
    """The plan of an export."""
    lines = [
        f"model            {plan.family}, {plan.parameters:,} parameters",
        f"weights          {size_text(plan.weight_bytes)} stored (embedding table {size_text(plan.embedding_bytes)})",
    ]
    if not plan.tied.stored_once:
        lines.append(f"tied embedding   stored twice, {size_text(plan.tied.extra_bytes)} more: {plan.tied.reason}")
    slots = sorted(set(plan.slots_per_layer) - {0})
    recurrent = [size for size in plan.state_bytes_per_layer if size]
    lines += [
        f"kv cache         {cache_type(plan.kv_bits)}, {plan.kv_bytes_per_token} B per token, {size_text(plan.kv_bytes_total)} in all",
        *(_slots_line(plan, count) for count in slots),
        *([f"states           {size_text(sum(recurrent))} in {len(recurrent)} recurrent layers"] if recurrent else []),
        f"context          {plan.context} tokens",
        f"device memory    {size_text(plan.device_memory_bytes)} at most",
        f"host memory      {size_text(plan.host_memory_bytes)} to export",
        f"decode floor     {plan.floor_ms_per_token:.3f} ms per token: {size_text(plan.bytes_read_per_token)} read at "
        f"{plan.memory_bandwidth_gb_s:g} GB/s (estimated)",
        *(f"note             {remark}" for remark in plan.remarks),
    ]
    return lines


def _slots_line(plan: Plan, slots: int) -> str:
    """How many layers have this many slots, and what each costs."""
    layers = [size for count, size in zip(plan.slots_per_layer, plan.kv_bytes_per_layer, strict=True) if count == slots]
    return f"  {len(layers):>3} layers       {slots} slots, {size_text(layers[0])} each"


def verification_lines(sections: dict[str, Any]) -> list[str]:
    """Parity and quality."""
    parity, quality = sections["parity"], sections["quality"]
    compared, phase, artifact = parity, "artifact", quality["perplexity_artifact"]
    not_run, name = [], "parity           "
    if parity["graph"] is not None:
        compared, phase, artifact = parity["graph"], "traced graph", quality["perplexity_graph"]
        not_run, name = [f"parity           {parity['obtained']}"], "traced graph     "
    full, quantized = quality["perplexity_full_precision"], quality["perplexity_quantized"]
    whole = quality["all_windows"]
    exact, same_codes = parity["exact"], parity.get("same_codes")
    return [
        *not_run,
        f"{name}top-1 {compared['top1_agreement']:.4f} over {compared['tokens']} tokens "
        f"({compared['disagreements']} differ, {compared['near_ties']} of them near-ties), mean KL {compared['mean_kl']:.2e}",
        *([] if exact is None else [f"without rounding largest difference of a logit {exact['max_abs_error']:.2e}"]),
        *([] if same_codes is None else [_same_codes_line(same_codes)]),
        f"perplexity       full precision {full:.3f}, quantized {quantized:.3f}, {phase} {artifact:.3f} "
        f"({percent_rise(artifact, quantized):+.2f} % over quantized), {quality['tokens']} tokens",
        f"quantization     {percent_rise(whole['perplexity_quantized'], whole['perplexity_full_precision']):+.2f} % perplexity "
        f"over {whole['tokens']} tokens",
    ]


def _same_codes_line(figures: dict[str, Any]) -> str:
    agreement, divergence = figures["top1_agreement"], figures["mean_kl"]
    return f"with equal codes top-1 {agreement:.4f} over {figures['tokens']} tokens, mean KL {divergence:.2e}"


def summary_lines(report: dict[str, Any], output: Path) -> list[str]:
    """What an export made."""
    artifact, cache = report["artifact"], report["kv_cache"]
    fraction = artifact["delegated_fraction"]
    return [
        f"artifact         {size_text(artifact['bytes'])} in {output}",
        *([] if fraction is None else [f"delegated        {fraction:.0%} of the operators"]),
        f"kv cache         {cache_type(cache['bits'])}, {size_text(cache['bytes_total'])}, slots {cache['slots_per_layer']}",
        *verification_lines(report),
        *(line for section in report.get("latency_devices", ()) for line in latency_lines(section)),
        f"took             {report['export']['wall_s']:.0f} s, {report['export']['cpu_s']:.0f} CPU s, "
        f"{size_text(report['export']['peak_rss_bytes'])} peak memory",
    ]


def several_lines(report: dict[str, Any], output: Path) -> list[str]:
    """What several exports made, and how far their artifacts agree."""
    lines = []
    for name, own in report["reports"].items():
        lines += ["", name, *summary_lines(own, output / name)]
    lines += ["", f"artifacts against each other ({report['cross_target']['obtained']})"]
    for pair in report["cross_target"]["pairs"]:
        lines.append(
            f"  {pair['first']} and {pair['second']}: top-1 {pair['top1_agreement']:.4f} over {pair['tokens']} tokens, "
            f"mean KL {pair['mean_kl']:.2e}"
        )
    return lines
