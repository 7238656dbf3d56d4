"""A profile for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from exporter.report.text import size_text

SHOWN = 16
"""Kinds of operators in the table; the rest is one line."""


def print_profile(found: dict[str, Any], console: Console) -> None:
    """A table of operators, and the lines about bytes and rates."""
    console.print(_table(found))
    for line in profile_lines(found):
        console.print(line, highlight=False, soft_wrap=True)


def profile_lines(found: dict[str, Any]) -> list[str]:
    """What the operators add up to, and how fast the bytes of a token are read."""
    times, needed, rates = found["ms_per_token"], found["bytes_per_token"], found["read_gb_s"]
    threads = f"{found['threads']} threads" if found["threads"] else "as many threads as the engine chooses"
    position = f"position {found['position']}"
    return [
        f"token            {times['p50']:.3f} ms at {position} ({times['traced_p50']:.3f} ms while traced), median of {found['tokens']}; "
        f"{found['engine']}, {threads}",
        f"bytes per token  {size_text(needed['total'])}: weights {size_text(needed['weights'])}, cache {size_text(needed['kv_cache'])} "
        "(by the plan)",
        f"read rate        {rates['effective']:.2f} GB/s, {rates['effective_of_buffer']:.0%} of the "
        f"{rates['buffer_of_token_bytes']:.2f} GB/s that this machine reads such a buffer with; {rates['memory']:.2f} GB/s from memory",
        f"source           {found['source']}",
    ]


def _table(found: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("operator")
    for name in ("calls", "ms per token", "share"):
        table.add_column(name, justify="right")
    total, operators = found["ms_per_token"]["traced_p50"], found["operators"]
    rest = operators[SHOWN:]
    for operator in operators[:SHOWN]:
        table.add_row(operator["name"], str(operator["calls"]), f"{operator['ms']:.4f}", f"{operator['share']:.1%}")
    if rest:
        ms = sum(operator["ms"] for operator in rest)
        calls = sum(operator["calls"] for operator in rest)
        table.add_row(f"{len(rest)} other kinds", str(calls), f"{ms:.4f}", f"{ms / total:.1%}")
    between = found["between_operators_ms"]
    table.add_row("between operators", "", f"{between:.4f}", f"{between / total:.1%}")
    return table
