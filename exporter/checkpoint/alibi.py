"""Slopes of attention that is biased by distance (ALiBi, arXiv 2108.12409)."""

from __future__ import annotations


def distance_slopes(heads: int) -> tuple[float, ...]:
    """A geometric series 2^(-8 i / n) over n heads. A number of heads that is no power of two takes every other one of
    the next power's, those with even i first."""
    count = 1 << (heads - 1).bit_length()
    series = [2.0 ** (-8.0 * index / count) for index in range(1, count + 1)]
    if count == heads:
        return tuple(series)
    return tuple((series[1::2] + series[::2])[:heads])
