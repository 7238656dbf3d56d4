"""Charts as SVG text: a few hundred bytes of markup that a browser, a phone and a printer show alike, without a library.

Sizes are those of a phone's screen, so that nothing shrinks below what can be read; a wider page shows charts side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 360, 230, 44, 34, 24, 10
COLORS = ("#1b62b5", "#b3541e")
"""Distinguishable for the colour-blind, in print by the dashes of the second."""
DASHES = ("", "5 3")


@dataclass(frozen=True)
class Line:
    """Points of one series, with its name."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Bar:
    """One bar, with the text behind it."""

    name: str
    value: float
    text: str


def line_chart(lines: Sequence[Line], x_title: str, y_title: str, title: str, floor: float | None = None) -> str:
    """Lines over a common axis that starts at 0; `floor` is a horizontal one."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + ([floor] if floor is not None else [])
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(0.0, max(ys))
    frame = _Frame(min(xs), max(max(xs), min(xs) + 1e-9), 0.0, max(y_ticks[-1], max(ys)))
    parts = [_axes(frame, x_ticks, y_ticks, x_title, y_title)]
    for index, line in enumerate(lines):
        path = " ".join(
            f"{'L' if at else 'M'}{frame.x(x):.1f},{frame.y(y):.1f}" for at, (x, y) in enumerate(line.points)
        )
        style = f'stroke="{COLORS[index % 2]}" stroke-dasharray="{DASHES[index % 2]}"'
        parts.append(f'<path d="{path}" fill="none" stroke-width="1.6" {style}/>')
    if floor is not None:
        at = f'y1="{frame.y(floor):.1f}" y2="{frame.y(floor):.1f}"'
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" {at} stroke="#555" stroke-dasharray="1 3"/>')
    names = [line.name for line in lines] + (["floor"] if floor is not None else [])
    return _svg(title, "".join(parts)) + _legend(names)


def histogram(groups: Sequence[tuple[str, Sequence[float]]], x_title: str, title: str, bins: int = 24) -> str:
    """Shares of the samples of each group, side by side; the slowest hundredth is put into the last bin, so that one outlier does not
    squeeze all others into the first."""
    every = sorted(value for _, values in groups for value in values)
    low, high = every[0], max(every[min(len(every) - 1, math.ceil(0.99 * len(every)))], every[0] * 1.01 + 1e-9)
    counts = []
    for _, values in groups:
        found = [0] * bins
        for value in values:
            found[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
        counts.append([100 * count / len(values) for count in found])
    y_ticks = _ticks(0.0, max(max(shares) for shares in counts))
    frame = _Frame(low, high, 0.0, y_ticks[-1])
    parts = [_axes(frame, _ticks(low, high), y_ticks, x_title, "% of tokens")]
    step = (WIDTH - LEFT - RIGHT) / bins
    for index, shares in enumerate(counts):
        width = step / len(counts) - 0.6
        for at, share in enumerate(shares):
            x, top = LEFT + at * step + index * step / len(counts), frame.y(share)
            box = f'x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{frame.y(0) - top:.1f}"'
            parts.append(f'<rect {box} fill="{COLORS[index % 2]}"/>')
    return _svg(title, "".join(parts)) + _legend([name for name, _ in groups])


def bar_chart(bars: Sequence[Bar], title: str) -> str:
    """Horizontal bars from 0, each with its figure."""
    largest = max((bar.value for bar in bars), default=0.0) or 1.0
    row, label, room = 24, 104, WIDTH - 104 - 78
    parts = []
    for index, bar in enumerate(bars):
        y, length = 6 + index * row, room * bar.value / largest
        parts.append(f'<text x="{label - 6}" y="{y + 13}" text-anchor="end">{escape(bar.name)}</text>')
        parts.append(f'<rect x="{label}" y="{y}" width="{max(length, 1):.1f}" height="17" fill="{COLORS[0]}"/>')
        parts.append(f'<text x="{label + max(length, 1) + 5:.1f}" y="{y + 13}">{escape(bar.text)}</text>')
    return _svg(title, "".join(parts), 12 + row * len(bars))


@dataclass(frozen=True)
class _Frame:
    """Values to places."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.bottom) / ((self.top - self.bottom) or 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from `low` on, the last one at or past `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / wanted))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if span / (factor * power) <= wanted)
    first = math.floor(low / step)
    return [step * number for number in range(first, math.ceil(high / step - 1e-9) + 1)]


def _axes(frame: _Frame, x_ticks: list[float], y_ticks: list[float], x_title: str, y_title: str) -> str:
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        if frame.left <= value <= frame.right:
            parts.append(
                f'<text x="{frame.x(value):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{value:g}</text>'
            )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_title)}</text>')
    parts.append(f'<text x="2" y="10">{escape(y_title)}</text>')
    return "".join(parts)


def _legend(names: Sequence[str]) -> str:
    marks = [f"<b style='color:{color}'>{mark}</b>" for color, mark in zip((*COLORS, "#555"), ("━", "╍", "┈"))]
    if "floor" in names:
        marks = [*marks[: len(names) - 1], marks[2]]
    shown = "".join(f"<span>{mark} {escape(name)}</span>" for mark, name in zip(marks, names))
    return f'<p class="legend">{shown}</p>'


def _svg(title: str, content: str, height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{content}</svg>"
    )
