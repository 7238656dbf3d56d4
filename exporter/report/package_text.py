"""Facts about a Core ML package as plain lines for a terminal."""

from __future__ import annotations

from typing import Any

from exporter.report.text import size_text

NAME_WIDTH = 17
SMALL_BYTES = 1024
"""Constants under this are not worth a line of their own; --json has them all."""


def package_lines(facts: dict[str, Any]) -> list[str]:
    """What `inspect` found."""
    weights = facts["weights"]
    lines = [
        _line(
            "specification", f"version {facts['specification_version']}, default function {facts['default_function']}"
        ),
        _line("weights", f"{size_text(weights['file_bytes'])} in files, {len(weights['blobs'])} blobs"),
        *_blob_lines(weights["blobs"]),
        _line("stored twice", size_text(weights["duplicate_bytes"])),
        *_duplicate_lines(weights["duplicates"]),
    ]
    for name, function in facts["functions"].items():
        lines += _function_lines(name, function)
    for name, counts in facts["lacking_operators"].items():
        lines.append(_line("lacking", f"function {name}: {_counts(counts)}; the interpreter cannot run this package"))
    return lines


def _blob_lines(blobs: list[dict[str, Any]]) -> list[str]:
    sums: dict[str, list[int]] = {}
    for blob in blobs:
        sums.setdefault(blob["dtype"], []).append(blob["bytes"])
    ordered = sorted(sums.items(), key=lambda item: -sum(item[1]))
    return [_line(f"  {dtype}", f"{size_text(sum(sizes))} in {len(sizes)} blobs") for dtype, sizes in ordered]


def _duplicate_lines(groups: list[list[dict[str, Any]]]) -> list[str]:
    large = [group for group in groups if group[0]["bytes"] >= SMALL_BYTES]
    return [
        _line(
            "",
            f"{size_text(group[0]['bytes'])} of {group[0]['dtype']} at bytes {', '.join(str(blob['offset']) for blob in group)}",
        )
        for group in large
    ]


def _function_lines(name: str, facts: dict[str, Any]) -> list[str]:
    lines = ["", _line("function", f"{name} ({facts['opset']})")]
    for kind in ("inputs", "outputs", "states"):
        for item, declared in facts[kind].items():
            lines.append(_line(f"  {kind.removesuffix('s')}", f"{item} {_type(declared)}{_remark(kind, declared)}"))
    lines.append(_line("  operators", _counts(facts["operators"])))
    lines += [
        _line("  note", f"state {state} was read before a write and used after it by {', '.join(users)}")
        for state, users in facts["stale_state_reads"].items()
    ]
    lines += [
        _line(
            "  note",
            f"{item['name']} takes {size_text(item['stored_bytes'])} compressed, {size_text(item['dense_bytes'])} without",
        )
        for item in facts["compressed_constants"]
        if item["stored_bytes"] > item["dense_bytes"]
    ]
    return lines


def _type(declared: dict[str, Any]) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in declared["shape"])
    return f"{declared['dtype']} [{sizes}], {size_text(declared['bytes'])}"


def _remark(kind: str, declared: dict[str, Any]) -> str:
    if kind == "states":
        return f", {declared['writes']} writes" if declared["writes"] else ", never written"
    return f", sizes {declared['allowed']}" if "allowed" in declared else ""


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _line(name: str, text: str) -> str:
    return f"{name:<{NAME_WIDTH}}{text}"


def package_verification_lines(result: dict[str, Any]) -> list[str]:
    """What `verify` found in a package."""
    lines = [_line("weights", f"{size_text(result['weight_bytes'])} in {result['blobs']} blobs, all in range")]
    for name, values in result["functions"].items():
        lines.append(_line("function", f"{name}, on zeros"))
        lines += [
            _line(
                "", f"{item}: finite, at most {value['max_abs']:.4g}; fp16 differs by {value['max_abs_difference']:.3g}"
            )
            for item, value in values.items()
        ]
    return lines
