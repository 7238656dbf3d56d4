"""Pieces of the Core ML graph, run alone: packed states, stored matrices, positions, masks, slots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import normal

pytest.importorskip("coremltools", reason="the coreml extra is not installed")

from coreml_pieces import run_piece, value

from exporter.decoder.cache import EMPTY, LayerCache
from exporter.decoder.rotary import cosine_sine
from exporter.decoder.spec import AttentionSpec, RotarySpec
from exporter.decoder.weights import DecoderWeights
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat, WeightFormat
from exporter.quantize.int4 import quantize_nearest
from exporter.quantize.kv_codec import ChannelConstants, KvCodec
from exporter.quantize.palette import quantize_to_palettes
from exporter.targets.coreml.graph import FunctionGraph
from exporter.targets.coreml.interpreter.machine import Precision
from exporter.targets.coreml.kv_state import SideCodec, SlotWriter, StatePart
from exporter.targets.coreml.layout import CHANNELS_FIRST, ROWS, Layout
from exporter.targets.coreml.positions import HIDDEN, Positions
from exporter.targets.coreml.weights import StoredWeights

LAYOUTS = [pytest.param(ROWS, id="rows"), pytest.param(CHANNELS_FIRST, id="channels")]
LANES = KvFormat(4, KvScaling.PER_TOKEN, half_lanes=True)
RINGS = {
    "full": LayerCache(24),
    "ring": LayerCache(16, window=9),
    "sinks": LayerCache(19, window=9, sinks=3),
}


def calls(*positions: int) -> list:
    """Every ring with chunks of 1 and 8 tokens at these positions; a full cache only as far as it reaches."""
    return [
        pytest.param(ring, tokens, position, id=f"{name}-{tokens}-{position}")
        for name, ring in RINGS.items()
        for tokens in (1, 8)
        for position in positions
        if ring.window is not None or position + tokens <= ring.slots
    ]


def test_every_lane_survives_unpacking_and_packing_in_fp16(tmp_path: Path) -> None:
    """All 4096 triples of codes, with every operator's result rounded to fp16."""
    lanes = np.arange(-2048, 2048, dtype=np.float16).reshape(1, 1, 4096, 1)

    def build(graph: FunctionGraph) -> object:
        codec = SideCodec(graph, ROWS, LANES, 3)
        codes = codec._unpacked(value(graph, "lanes"))
        return graph.node("concat", values=[codes, codec._packed(codes)], axis=3)

    found, _ = run_piece(tmp_path, build, {"lanes": lanes})
    codes, again = found[0, 0, :, :3], found[0, 0, :, 3:]
    assert np.array_equal(again, lanes[0, 0])
    assert len({tuple(row) for row in codes.tolist()}) == 4096
    assert codes.min() == -8 and codes.max() == 7


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [8, 9, 64])
def test_vectors_are_encoded_and_decoded_as_the_codec_does(
    layout: Layout, zero_point: bool, width: int, tmp_path: Path
) -> None:
    """In exact arithmetic, so that no code lies on a border; a vector of zeros is among them."""
    kv_format = replace(LANES, zero_point=zero_point, float_scales=True)
    rows = normal(3, 5, 2, width).half().float()
    rows[1, 0] = 0
    codec = KvCodec(kv_format, ChannelConstants.identity(2, width))
    expected = codec.decode(codec.encode(rows))
    given = rows.permute(1, 2, 0) if layout.channels_first else rows.permute(1, 0, 2)

    def build(graph: FunctionGraph) -> object:
        side = SideCodec(graph, layout, kv_format, width)
        return side.decode(side.encode(graph.cast(value(graph, "rows"), layout.between)))

    found, _ = run_piece(tmp_path, build, {"rows": given[None].numpy()}, precision=Precision.FP32)
    order = (2, 0, 1) if layout.channels_first else (1, 0, 2)
    np.testing.assert_allclose(found[0].transpose(order), expected.numpy(), atol=2e-6)


def cached_shape(layout: Layout, heads: int, tokens: int, width: int) -> tuple[int, ...]:
    return (1, heads, width, tokens) if layout.channels_first else (1, heads, tokens, width)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("ring", "tokens", "position"), calls(0, 8, 16, 40))
def test_tokens_go_to_their_slots_and_no_other_slot_changes(
    layout: Layout, ring: LayerCache, tokens: int, position: int, tmp_path: Path
) -> None:
    part = StatePart("keys", 2, ring.slots, 3)
    before = normal(1, *part.shape(layout)).half().numpy()
    new = normal(2, *cached_shape(layout, 2, tokens, 3)).half().numpy()

    def build(graph: FunctionGraph) -> object:
        positions = Positions(graph, layout, graph.input("position"), tokens, 64)
        return SlotWriter(graph, layout, positions).write(part, value(graph, "new"), ring)

    found, held = run_piece(tmp_path, build, {"keys": before, "new": new}, position)
    expected = before.reshape(cached_shape(layout, 2, ring.slots, 3)).copy()
    slots = ring.slot_of(np.arange(position, position + tokens))
    if layout.channels_first:
        expected[..., slots] = new
    else:
        expected[:, :, slots] = new
    assert np.array_equal(found, expected)
    assert np.array_equal(held["keys"].reshape(expected.shape), expected)


@pytest.mark.parametrize(("ring", "tokens", "position"), calls(0, 2, 8, 16, 40, 48))
def test_the_mask_is_the_rule_of_the_cache(ring: LayerCache, tokens: int, position: int, tmp_path: Path) -> None:
    def build(graph: FunctionGraph) -> object:
        attention = AttentionSpec(query_heads=4, kv_heads=2, head_dim=8, score_scale=1.0, rotary=None)
        return Positions(graph, ROWS, graph.input("position"), tokens, 64).mask(ring, attention)

    found, _ = run_piece(tmp_path, build, {"unused": np.zeros((1, 1), np.float16)}, position)
    seen = ring.visible(np.arange(position, position + tokens), ring.held_positions(position + tokens))
    expected = np.where(seen, 0.0, -HIDDEN)
    assert np.array_equal(found[0, 0], expected if tokens == 1 else np.concatenate([expected, expected]))
    assert (ring.held_positions(position + tokens) == EMPTY).any() or position + tokens >= ring.slots


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rotary_angles_are_exact_where_nothing_is_rounded(layout: Layout, tmp_path: Path) -> None:
    rotary = RotarySpec(8, 10000.0)

    def build(graph: FunctionGraph) -> object:
        cosine, sine = Positions(graph, layout, graph.input("position"), 4, 600).angles(rotary)
        return graph.node("concat", values=[cosine, sine], axis=layout.head_channel_axis)

    states = {"unused": np.zeros((1, 1), np.float16)}
    found, _ = run_piece(tmp_path, build, states, 500, Precision.FP32)
    expected = torch.cat(cosine_sine(rotary, torch.arange(500, 504)), -1).numpy()
    rows = found[0, 0].T if layout.channels_first else found[0, :, 0]
    np.testing.assert_allclose(rows, expected, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("columns", [64, 72])
@pytest.mark.parametrize("palette_rows", [0, 4])
def test_a_stored_matrix_is_what_its_codes_say(layout: Layout, columns: int, palette_rows: int, tmp_path: Path) -> None:
    weight_format = WeightFormat(4, 32, ScaleFormat.FP16, palette_rows)
    quantize = quantize_to_palettes if palette_rows else quantize_nearest
    matrix = quantize(normal(1, 24, columns), weight_format)
    stored = StoredWeights(DecoderWeights({"matrix": matrix}, {}), layout)

    def build(graph: FunctionGraph) -> object:
        return graph.node("gather", x=stored.matrix(graph, "matrix"), indices=np.arange(24, dtype=np.int32), axis=0)

    found, _ = run_piece(tmp_path, build, {"unused": np.zeros((1, 1), np.float16)}, precision=Precision.FP32)
    rows = found.reshape(24, -1)
    assert rows.shape[1] == stored.padded_columns("matrix")
    assert np.array_equal(rows[:, :columns], matrix.dequantize().numpy())
    assert not rows[:, columns:].any()


def test_a_constant_is_stored_once_and_a_value_never_takes_its_name(tmp_path: Path) -> None:
    def build(graph: FunctionGraph) -> object:
        first = graph.constant("gain", np.ones(16, np.float32))
        assert graph.constant("gain", np.zeros(16, np.float32)) is first
        assert graph.node("abs", "gain", x=first).name != "gain"
        return first

    run_piece(tmp_path, build, {"unused": np.zeros((1, 1), np.float16)})
