"""Rings, windows and sinks against the definition of what a token sees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from helpers import TinyModel, examples, visible_positions
from hypothesis import given
from hypothesis import strategies as st

from exporter.decoder.cache import EMPTY, CacheSettings, LayerCache, cache_layout


def layer_cache(window: int | None, settings: CacheSettings) -> LayerCache:
    """Layout of a layer with its own window."""
    return cache_layout(TinyModel(windows=(window,)).spec(), settings)[0]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[int | None, CacheSettings, list[int]]:
    """A model's own window, settings, and sizes of the chunks in which the whole context is written."""
    context = draw(st.integers(2, 60))
    chunk = draw(st.integers(1, context))
    bounds = st.none() | st.integers(1, 40)
    settings = CacheSettings(context, chunk, draw(bounds), draw(st.integers(0, 6)))
    sizes: list[int] = []
    while sum(sizes) < context:
        sizes.append(min(draw(st.integers(1, chunk)), context - sum(sizes)))
    return draw(bounds), settings, sizes


def simulate(layer: LayerCache, sizes: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Writes chunk after chunk into real slots; yields the positions of each chunk and what the slots then hold."""
    slots, length = np.full(layer.slots, EMPTY), 0
    for size in sizes:
        positions = np.arange(length, length + size)
        for position, slot in zip(positions, layer.slot_of(positions), strict=True):
            slots[slot] = position
        length += size
        yield positions, slots


@given(conversations())
@examples(150)
def test_everything_visible_by_definition_is_held_once_and_exactly_that_is_marked(
    conversation: tuple[int | None, CacheSettings, list[int]],
) -> None:
    own, settings, sizes = conversation
    layer = layer_cache(own, settings)
    window = min((bound for bound in (own, settings.window) if bound is not None), default=None)
    for positions, slots in simulate(layer, sizes):
        marks = layer.visible(positions, slots)
        for query, row in zip(positions, marks, strict=True):
            assert sorted(slots[row]) == sorted(visible_positions(int(query), window, settings.sinks))


@given(conversations())
@examples(150)
def test_held_positions_equal_what_was_really_written(
    conversation: tuple[int | None, CacheSettings, list[int]],
) -> None:
    own, settings, sizes = conversation
    layer = layer_cache(own, settings)
    assert (layer.held_positions(0) == EMPTY).all()
    for positions, slots in simulate(layer, sizes):
        assert np.array_equal(layer.held_positions(int(positions[-1]) + 1), slots)


@given(conversations())
@examples(150)
def test_tokens_fill_the_slots_in_order_before_any_is_overwritten(
    conversation: tuple[int | None, CacheSettings, list[int]],
) -> None:
    own, settings, _ = conversation
    layer = layer_cache(own, settings)
    assert np.array_equal(layer.slot_of(np.arange(layer.slots)), np.arange(layer.slots))


@given(conversations(), st.integers(1, 3))
@examples(100)
def test_rounding_slots_up_keeps_visibility(
    conversation: tuple[int | None, CacheSettings, list[int]], extra: int
) -> None:
    own, settings, sizes = conversation
    exact = layer_cache(own, settings)
    roomy = LayerCache(exact.slots + extra, exact.window, exact.sinks)
    for (positions, slots), (_, wider) in zip(simulate(exact, sizes), simulate(roomy, sizes), strict=True):
        for query in positions:
            row = np.array([query])
            expected, found = slots[exact.visible(row, slots)[0]], wider[roomy.visible(row, wider)[0]]
            assert sorted(found) == sorted(expected)


def test_a_windowed_layer_has_window_plus_chunk_less_one_plus_sinks_slots() -> None:
    assert layer_cache(10, CacheSettings(100, 8, None, 3)) == LayerCache(10 + 8 - 1 + 3, 10, 3)


def test_one_slot_fewer_would_lose_a_visible_token() -> None:
    layer = layer_cache(10, CacheSettings(100, 8, None, 3))
    tight, lost = LayerCache(layer.slots - 1, layer.window, layer.sinks), 0
    for positions, slots in simulate(tight, [8] * 12):
        for query, row in zip(positions, tight.visible(positions, slots), strict=True):
            lost += len(visible_positions(int(query), 10, 3)) - int(row.sum())
    assert lost > 0


def test_an_imposed_window_bounds_longer_ones_and_leaves_shorter_ones() -> None:
    layout = cache_layout(TinyModel(windows=(None, 50, 5)).spec(), CacheSettings(100, 1, 20))
    assert [layer.window for layer in layout] == [20, 20, 5]
    assert [layer.slots for layer in layout] == [20, 20, 5]


@pytest.mark.parametrize("window", [None, 30, 31, 4096])
def test_a_context_no_longer_than_the_window_has_one_slot_per_position(window: int | None) -> None:
    assert layer_cache(window, CacheSettings(30, 8)) == LayerCache(30)


def test_slots_never_exceed_the_context() -> None:
    assert layer_cache(20, CacheSettings(30, 25, None, 2)) == LayerCache(30, 20, 2)


def test_sinks_of_a_window_just_short_of_the_context_are_kept() -> None:
    assert layer_cache(491, CacheSettings(512, 32, None, 20)) == LayerCache(512, 491, 20)


@pytest.mark.parametrize("window", [492, 500, 511])
def test_a_window_whose_sinks_cover_the_rest_of_the_context_is_none(window: int) -> None:
    assert layer_cache(window, CacheSettings(512, 32, None, 20)) == LayerCache(512)


def test_a_window_and_sinks_that_reach_the_context_hide_nothing() -> None:
    layer = layer_cache(10, CacheSettings(12, 4, None, 4))
    query = np.array([11])
    assert layer.visible(query, layer.held_positions(12)).all()
