"""A comparison as lines for a terminal, Markdown for a pull request, and JUnit XML for CI."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from exporter.report.compare import Change, Comparison


def number_text(value: float | None) -> str:
    """Whole numbers whole, others with five digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value == int(value) and abs(value) >= 10 else f"{value:.5g}"


def change_text(change: Change) -> str:
    """Percent, or why there is none."""
    if change.reason:
        return "not comparable"
    if change.percent is None:
        return "-" if change.old != change.new else "same"
    if change.old == change.new:
        return "same"
    return f"{change.percent:+.2f} %" + (" (noise)" if change.noise else "")


def comparison_lines(comparison: Comparison) -> list[str]:
    """One line per figure, then one per budget."""
    width = max(len(change.name) for change in comparison.changes)
    lines = [
        f"{change.name:<{width}}  {number_text(change.old):>14} {number_text(change.new):>14}  {change_text(change)}"
        for change in comparison.changes
    ]
    lines += [f"note: {reason}" for reason in _reasons(comparison)]
    return lines + [f"{'kept  ' if verdict.kept else 'BROKEN'}  {verdict.text}" for verdict in comparison.verdicts]


def comparison_markdown(comparison: Comparison) -> str:
    """What broke first, then the table."""
    title = (
        f"{len(comparison.broken)} of {len(comparison.verdicts)} budgets broken" if comparison.verdicts else "Changes"
    )
    lines = [f"### {title}", ""]
    lines += [f"- {'✅' if item.kept else '❌'} `{item.text}`" for item in comparison.verdicts]
    lines += ["", "| Figure | Old | New | Change |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| `{change.name}` | {number_text(change.old)} | {number_text(change.new)} | {change_text(change)} |"
        for change in comparison.changes
    ]
    lines += ["", *(f"> {reason}" for reason in _reasons(comparison))]
    return "\n".join(lines).rstrip() + "\n"


def comparison_junit(comparison: Comparison) -> str:
    """One test case per budget."""
    suite = ElementTree.Element(
        "testsuite",
        name="slm-export budgets",
        tests=str(len(comparison.verdicts)),
        failures=str(len(comparison.broken)),
    )
    for verdict in comparison.verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname="budgets", name=verdict.budget.text)
        if not verdict.kept:
            ElementTree.SubElement(case, "failure", message=verdict.text)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _reasons(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(change.reason for change in comparison.changes if change.reason))
