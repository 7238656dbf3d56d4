"""The host side of an NPU artifact against the decoder's own cache, codecs and tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import (
    GraphSession,
    TinyModel,
    awkward_matrix,
    calibrated_encodings,
    examples,
    normal,
    numpy_codes,
    quantized_decoder,
    random_tokens,
    visible_positions,
)
from hypothesis import given
from hypothesis import strategies as st

from exporter.decoder.cache import CacheSettings, LayerCache, cache_layout
from exporter.decoder.rotary import cosine_sine, inverse_frequencies
from exporter.decoder.spec import RotaryScaling, RotaryScalingKind, RotarySpec
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat, WeightFormat
from exporter.quantize.int4 import QuantizedMatrix, quantize_nearest
from exporter.targets.executorch.qnn.boundary import rotary_encoding
from exporter.targets.executorch.qnn.driver import EmbeddingTable, QnnDriver
from exporter.targets.executorch.qnn.graph import Encoding, Storage
from exporter.targets.executorch.qnn.host import HIDDEN, VISIBLE, Host, HostLayer, HostLayout, KvRing
from exporter.targets.executorch.qnn.lower import DECODE, PREFILL

KV_HEADS, HEAD_DIM, VOCAB = 2, 4, 3


def host_layer(layer: LayerCache, mask: str) -> HostLayer:
    return HostLayer(layer.slots, layer.window, layer.sinks, mask, KV_HEADS, HEAD_DIM, 8, 8)


def make_host(layout: tuple[LayerCache, ...], chunk: int, bits: int) -> Host:
    """A host whose embedding row of token t is [t, -t]."""
    layers = tuple(host_layer(layer, f"mask_{index}") for index, layer in enumerate(layout))
    settings = HostLayout(999, chunk, 2, VOCAB, 0.001, 30000, 0.5, 10, (1.0, 0.1), bits, 32, layers)
    return Host(settings, lambda token_id: np.array([token_id, -token_id], np.float32))


def unpacked(ring: KvRing) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a ring: keys [K, Hd, slots] and values [K, slots, Hd]."""
    if ring.bits == 8:
        return ring.keys, ring.values
    return tuple(  # type: ignore[return-value]
        np.stack((part & 0xF, part >> 4), -1).reshape(*part.shape[:-1], -1) for part in (ring.keys, ring.values)
    )


@st.composite
def conversations(draw: st.DrawFn) -> tuple[tuple[LayerCache, ...], int, list[int]]:
    """Layout of two layers, chunk length, and tokens per call until the context is full."""
    context = draw(st.integers(2, 40))
    chunk = draw(st.integers(1, min(8, context)))
    settings = CacheSettings(context, chunk, draw(st.none() | st.integers(1, 20)), draw(st.integers(0, 4)))
    layout = cache_layout(TinyModel(windows=(None, draw(st.integers(1, 20)))).spec(), settings)
    even = tuple(LayerCache(layer.slots + layer.slots % 2, layer.window, layer.sinks) for layer in layout)
    sizes: list[int] = []
    while sum(sizes) < context:
        sizes.append(min(draw(st.integers(1, chunk)), context - sum(sizes)))
    return even, chunk, sizes


@pytest.mark.parametrize("bits", [8, 4])
@given(conversations())
@examples(60)
def test_slots_contents_and_masks_agree_with_the_layer_cache(
    bits: int, conversation: tuple[tuple[LayerCache, ...], int, list[int]]
) -> None:
    layout, chunk, sizes = conversation
    host, total = make_host(layout, chunk, bits), sum(sizes)
    keys, values = (numpy_codes(seed, 0, 2**bits - 1, total + chunk, KV_HEADS, HEAD_DIM) for seed in (1, 2))
    length = 0
    for size in sizes:
        inputs = host.inputs([1] * size, chunk)
        queries = np.arange(length, length + chunk)
        own = np.where(np.arange(chunk) < size, queries, -1)
        for index, layer in enumerate(layout):
            seen = inputs[f"mask_{index}"][0, 0]
            held = np.concatenate((layer.held_positions(length), own))
            assert np.array_equal(seen == VISIBLE, layer.visible(queries, held))
            assert np.array_equal(seen == HIDDEN, ~layer.visible(queries, held))
            for query in range(size):
                expected = visible_positions(length + query, layer.window, layer.sinks)
                assert sorted(held[seen[query] == VISIBLE]) == sorted(expected)
        span = slice(length, length + chunk)
        outputs = {"logits": np.zeros((1, 1, chunk, VOCAB), np.uint16)}
        for index in range(len(layout)):
            outputs[f"layers.{index}.new_keys"] = keys[span].transpose(1, 2, 0)[None]
            outputs[f"layers.{index}.new_values"] = values[span].transpose(1, 0, 2)[None]
        host.commit(outputs, size)
        length += size
        assert host.length == length
        for layer, ring in zip(layout, host.rings, strict=True):
            ring_keys, ring_values = unpacked(ring)
            for slot, position in enumerate(layer.held_positions(length)):
                expected_key, expected_value = (
                    (keys[position], values[position]) if position >= 0 else (np.uint8(8), np.uint8(8))
                )
                assert (ring_keys[:, :, slot] == expected_key).all()
                assert (ring_values[:, slot, :] == expected_value).all()


@given(slots=st.integers(1, 12).map(lambda half: 2 * half), positions=st.lists(st.integers(0, 60), max_size=30))
@examples(100)
def test_int4_writes_round_trip_and_touch_their_own_slot_only(slots: int, positions: list[int]) -> None:
    ring = KvRing(host_layer(LayerCache(slots, 5, 1), "mask"), 4)
    expected = {"keys": np.full((KV_HEADS, HEAD_DIM, slots), 8), "values": np.full((KV_HEADS, slots, HEAD_DIM), 8)}
    for turn, position in enumerate(positions):
        key, value = (numpy_codes(2 * turn + side, 0, 15, KV_HEADS, HEAD_DIM) for side in (0, 1))
        ring.write(position, key, value)
        slot = ring.layer.slot_of(position)
        expected["keys"][:, :, slot], expected["values"][:, slot, :] = key, value
    found = unpacked(ring)
    assert np.array_equal(found[0], expected["keys"])
    assert np.array_equal(found[1], expected["values"])


@pytest.mark.parametrize(("bits", "halves"), [(8, 2), (4, 1)])
def test_a_ring_allocates_exactly_its_packed_codes(bits: int, halves: int) -> None:
    ring = KvRing(host_layer(LayerCache(12, None), "mask"), bits)
    assert ring.nbytes() == 2 * KV_HEADS * 12 * HEAD_DIM * halves // 2


@given(slots=st.integers(3, 40), sinks=st.integers(0, 2), position=st.integers(0, 500))
@examples(100)
def test_the_slot_of_a_position_is_that_of_the_layer_cache(slots: int, sinks: int, position: int) -> None:
    layer = LayerCache(slots, 3, sinks)
    assert host_layer(layer, "mask").slot_of(position) == int(layer.slot_of(np.array([position]))[0])


def test_padding_tokens_are_seen_by_nobody_and_leave_no_trace() -> None:
    host = make_host((LayerCache(8, None),), 4, 8)
    inputs = host.inputs([5, 6], 4)
    mask = inputs["mask_0"][0, 0]
    assert (mask[:, -2:] == HIDDEN).all()
    assert mask[:2, 8:10].tolist() == [[VISIBLE, HIDDEN], [VISIBLE, VISIBLE]]
    assert (inputs["hidden"][0, 0, 2:] == host.layout.hidden_zero).all()
    outputs = {
        "logits": np.arange(4 * VOCAB, dtype=np.uint16).reshape(1, 1, 4, VOCAB),
        "layers.0.new_keys": np.full((1, KV_HEADS, HEAD_DIM, 4), 99, np.uint8),
        "layers.0.new_values": np.full((1, KV_HEADS, 4, HEAD_DIM), 99, np.uint8),
    }
    logits = host.commit(outputs, 2)
    assert host.length == 2
    assert logits.tolist() == [[-5.0, -4.5, -4.0], [-3.5, -3.0, -2.5]]
    assert (host.rings[0].keys[:, :, :2] == 99).all()
    assert (host.rings[0].keys[:, :, 2:] == 8).all()
    assert (host.rings[0].values[:, 2:] == 8).all()


def test_hidden_states_are_embedding_rows_in_the_hidden_encoding() -> None:
    host = make_host((LayerCache(8, None),), 4, 8)
    codes = host.inputs([5, 6, 40], 4)["hidden"]
    real = Encoding(Storage.UINT16, host.layout.hidden_scale, host.layout.hidden_zero).dequantize(
        torch.from_numpy(codes.astype(np.int32))
    )
    expected = torch.tensor([[5.0, -5.0], [6.0, -6.0], [(65535 - 30000) * 0.001, -30000 * 0.001], [0.0, 0.0]])
    torch.testing.assert_close(real[0, 0], expected, rtol=0, atol=5.1e-4)


@pytest.mark.parametrize("scaling", [None, RotaryScaling(RotaryScalingKind.YARN, 4.0, original_context=64)])
def test_angles_are_the_decoder_s_own_at_the_next_positions(scaling: RotaryScaling | None) -> None:
    rotary = RotarySpec(8, 10000.0, scaling)
    frequencies = tuple(inverse_frequencies(rotary).tolist())
    layer = host_layer(LayerCache(600, None), "mask")
    host = Host(HostLayout(600, 4, 2, VOCAB, 1.0, 0, 1.0, 0, frequencies, 8, 32, (layer,)), lambda token: np.zeros(2))
    host.length = 517
    inputs, encoding = host.inputs([1, 2, 3, 4], 4), rotary_encoding(rotary)
    for name, expected in zip(("cosine", "sine"), cosine_sine(rotary, torch.arange(517, 521)), strict=True):
        found = encoding.dequantize(torch.from_numpy(inputs[name].astype(np.int32)))
        assert inputs[name].dtype == np.uint16
        torch.testing.assert_close(found[0, :, 0], expected, rtol=0, atol=0.51 * encoding.scale + 1e-5)


def test_the_layout_survives_json() -> None:
    layout = make_host((LayerCache(8, None), LayerCache(6, 3, 1)), 4, 4).layout
    assert HostLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def embedding_table(matrix: QuantizedMatrix) -> EmbeddingTable:
    """The table as it is stored in an artifact."""
    return EmbeddingTable(
        matrix.packed.numpy(), matrix.scales.half().numpy(), matrix.in_features, matrix.format.group_size
    )


@pytest.mark.parametrize(
    ("hidden_size", "weight_format"),
    [
        pytest.param(64, WeightFormat(4, 32, ScaleFormat.LPBQ), id="whole-groups"),
        pytest.param(24, WeightFormat(4, 32, ScaleFormat.LPBQ), id="one-short-group"),
        pytest.param(63, WeightFormat(4, 63, ScaleFormat.FP16), id="odd-width"),
        pytest.param(80, WeightFormat(4, 32, ScaleFormat.LPBQ), id="remainder-of-half-a-group"),
        pytest.param(576, WeightFormat(4, 128, ScaleFormat.LPBQ), id="576-by-128"),
        pytest.param(72, WeightFormat(8, 72, ScaleFormat.FP16), id="int8"),
    ],
)
def test_embedding_rows_equal_the_rows_of_the_quantized_matrix(hidden_size: int, weight_format: WeightFormat) -> None:
    matrix = quantize_nearest(awkward_matrix(6, 17, hidden_size), weight_format)
    table = embedding_table(matrix)
    for token_id in range(17):
        assert np.array_equal(table.row(token_id), matrix.rows(torch.tensor([token_id]))[0].numpy())


def test_embedding_rows_of_tiny_magnitude_survive_their_fp16_scales() -> None:
    matrix = quantize_nearest(normal(6, 40, 64) * 1e-4, WeightFormat(4, 32, ScaleFormat.LPBQ))
    table = embedding_table(matrix)
    assert np.array_equal(np.stack([table.row(token_id) for token_id in range(40)]), matrix.dequantize().numpy())


@pytest.mark.parametrize("bits", [8, 4])
def test_the_driver_prefills_in_chunks_decodes_and_starts_over(bits: int) -> None:
    kv_format = KvFormat(bits, KvScaling.STATIC, per_channel=True)
    decoder = quantized_decoder(TinyModel(), CacheSettings(64, 6, 5, 2), kv_format, slot_multiple=2)
    session = GraphSession(decoder, calibrated_encodings(decoder))
    tokens = random_tokens(decoder.spec, 16)
    expected = session.run(tokens, 3).numpy()
    methods = {
        name: lambda codes, name=name: session.codes(name, session.evaluate(name, codes)) for name in (PREFILL, DECODE)
    }
    driver = QnnDriver(methods, session.layout, embedding_table(decoder.weights.quantized("embedding")))
    for _ in range(2):
        driver.reset()
        found = [driver.prefill(tokens[:13]), *(driver.decode(token)[None] for token in tokens[13:])]
        assert np.array_equal(np.concatenate(found), expected)
    slots = sum(layer.slots for layer in decoder.layout)
    assert driver.kv_bytes() == 2 * slots * TinyModel().kv_heads * kv_format.vector_bytes(TinyModel().head_dim)
