"""The NPU graph computes what the oracle computes; encodings keep zero exact and are shared where data only moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import (
    GraphSession,
    TinyModel,
    calibrated_constants,
    calibrated_encodings,
    decode_in_pieces,
    examples,
    normal,
    quantized_decoder,
    random_tokens,
    relative_error,
)
from hypothesis import given
from hypothesis import strategies as st

from exporter.decoder.cache import CacheSettings
from exporter.decoder.spec import Activation, RotaryScaling, RotaryScalingKind, RotarySpec
from exporter.decoder.weights import DecoderWeights
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.int4 import quantize_nearest
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.qnn.blocks import CHANNEL_MULTIPLE, SMALLEST_BLOCK, kernel_block, kernel_columns
from exporter.targets.executorch.qnn.boundary import nibble_table, rotary_encoding
from exporter.targets.executorch.qnn.encodings import MARGIN
from exporter.targets.executorch.qnn.graph import MOVES_DATA, Constant, Encoding, HtpGraph, Kernel, Storage, Value
from exporter.targets.executorch.qnn.lower import DECODE, PREFILL, build_graphs
from exporter.targets.executorch.qnn.ops import QnnOps

TOKENS, DECODED, CHUNK = 25, 5, 6
KV_FORMATS = {
    "int8": KvFormat(8, KvScaling.STATIC),
    "int8-per-channel": KvFormat(8, KvScaling.STATIC, per_channel=True),
    "int4-per-channel": KvFormat(4, KvScaling.STATIC, per_channel=True),
}
MODELS = {
    "plain": TinyModel(),
    "biases-untied": TinyModel(bias=True, tied=False),
    "query-key-norm": TinyModel(query_key_norm=True, kv_heads=4),
    "padded-remainders": TinyModel(hidden_size=40, inner_size=72, rotated=4),
    "unpadded-remainders": TinyModel(hidden_size=48, inner_size=80),
    "relu-three-layers": TinyModel(windows=(3, None, 9), activation=Activation.RELU),
    "gelu-yarn": TinyModel(
        activation=Activation.GELU, scaling=RotaryScaling(RotaryScalingKind.YARN, 4.0, original_context=64)
    ),
    "one-kv-head": TinyModel(kv_heads=1),
    "one-head": TinyModel(query_heads=1, kv_heads=1, windows=(None,)),
}
CACHES = {"full": (None, 0), "window-and-sinks": (5, 2)}

every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
every_kv_format = pytest.mark.parametrize("kv_format", KV_FORMATS.values(), ids=KV_FORMATS)


def decoder_of(model: TinyModel, kv_format: KvFormat, window: int | None = None, sinks: int = 0) -> QuantizedDecoder:
    multiple = 2 if kv_format.bits == 4 else 1
    return quantized_decoder(model, CacheSettings(64, CHUNK, window, sinks), kv_format, slot_multiple=multiple)


def oracle_logits(decoder: QuantizedDecoder) -> torch.Tensor:
    return decode_in_pieces(decoder.oracle(), random_tokens(decoder.spec, TOKENS), [CHUNK])


def values_of(graph: HtpGraph) -> list[Value]:
    return [*graph.inputs, *(operation.output for operation in graph.operations)]


def with_scaled_value_channel(decoder: QuantizedDecoder, size: float) -> QuantizedDecoder:
    """The same decoder with one value channel of the first layer multiplied by `size`, calibrated again."""
    name = "layers.0.attention.value"
    rows = decoder.weights.dense(name).clone()
    rows[3] *= size
    matrices = {**decoder.weights.matrices, name: quantize_nearest(rows, decoder.weights.quantized(name).format)}
    weights = DecoderWeights(matrices, decoder.weights.vectors)
    constants = calibrated_constants(decoder.spec, weights, decoder.kv_format)
    return replace(decoder, weights=weights, kv_constants=constants)


@pytest.mark.parametrize(("window", "sinks"), CACHES.values(), ids=CACHES)
@every_kv_format
@every_model
def test_both_methods_in_float_equal_the_oracle(
    model: TinyModel, kv_format: KvFormat, window: int | None, sinks: int
) -> None:
    decoder = decoder_of(model, kv_format, window, sinks)
    expected = oracle_logits(decoder)
    found = GraphSession(decoder).run(random_tokens(decoder.spec, TOKENS), DECODED)
    assert float((found - expected).abs().median() / expected.std()) < 0.003
    assert relative_error(found, expected) < 0.02


@every_kv_format
@every_model
def test_both_methods_in_16_bit_arithmetic_stay_close_to_the_oracle(model: TinyModel, kv_format: KvFormat) -> None:
    decoder = decoder_of(model, kv_format, 7, 1)
    expected = oracle_logits(decoder)
    found = GraphSession(decoder, calibrated_encodings(decoder)).run(random_tokens(decoder.spec, TOKENS), DECODED)
    assert float((found - expected).abs().median() / expected.std()) < 0.01
    assert relative_error(found, expected) < 0.1


@pytest.mark.parametrize("sizes", [[1], [4, 1, 6, 2]])
def test_short_chunks_give_the_same_logits_as_full_ones(sizes: list[int]) -> None:
    decoder = decoder_of(MODELS["plain"], KV_FORMATS["int8"], 5, 2)
    tokens, session, logits = random_tokens(decoder.spec, TOKENS), GraphSession(decoder), []
    at = 0
    while at < TOKENS:
        size = sizes[len(logits) % len(sizes)]
        logits.append(session.feed(PREFILL, tokens[at : at + size]))
        at += size
    assert relative_error(torch.cat(logits), oracle_logits(decoder)) < 0.02


@every_kv_format
@pytest.mark.parametrize("size", [0.0, 1e-3])
def test_a_value_channel_that_barely_moves_does_not_spoil_the_others(kv_format: KvFormat, size: float) -> None:
    decoder = with_scaled_value_channel(decoder_of(MODELS["plain"], kv_format), size)
    found = GraphSession(decoder).run(random_tokens(decoder.spec, TOKENS), DECODED)
    assert relative_error(found, oracle_logits(decoder)) < 0.02


@every_kv_format
@every_model
def test_operators_that_move_data_share_one_encoding(model: TinyModel, kv_format: KvFormat) -> None:
    decoder = decoder_of(model, kv_format, 7, 1)
    encodings, moves = calibrated_encodings(decoder), 0
    for graph in build_graphs(decoder).values():
        for operation in graph.operations:
            if operation.kind in MOVES_DATA:
                for operand in operation.inputs:
                    if isinstance(operand, Value):
                        assert encodings[operand.name] == encodings[operation.output.name], operation.name
                        moves += 1
    assert moves > 20


@every_kv_format
@every_model
def test_every_value_of_both_methods_has_an_encoding_and_fixed_ones_keep_theirs(
    model: TinyModel, kv_format: KvFormat
) -> None:
    decoder = decoder_of(model, kv_format, 7, 1)
    encodings = calibrated_encodings(decoder)
    for graph in build_graphs(decoder).values():
        for value in values_of(graph):
            if value.storage is not Storage.INT32:
                assert encodings[value.name].storage is value.storage, value.name
                assert value.fixed is None or encodings[value.name] == value.fixed, value.name


@every_model
def test_values_of_the_same_name_are_computed_alike_in_both_methods(model: TinyModel) -> None:
    graphs = build_graphs(decoder_of(model, KV_FORMATS["int8-per-channel"], 7, 1))
    prefill, decode = (
        {operation.output.name: operation for operation in graphs[name].operations} for name in (PREFILL, DECODE)
    )
    common = prefill.keys() & decode.keys()
    assert len(common) > len(prefill) / 2
    moves = MOVES_DATA | {"Transpose"}
    for name in common:
        kinds = {prefill[name].kind, decode[name].kind}
        assert len(kinds) == 1 or kinds <= moves, name
        assert prefill[name].output.fixed == decode[name].output.fixed, name


@every_model
def test_names_of_values_are_unique_within_a_method(model: TinyModel) -> None:
    for graph in build_graphs(decoder_of(model, KV_FORMATS["int4-per-channel"], 7, 1)).values():
        names = [value.name for value in values_of(graph)]
        assert len(names) == len(set(names))


@every_model
def test_convolutions_read_as_many_channels_as_their_blocks_need(model: TinyModel) -> None:
    decoder = decoder_of(model, KV_FORMATS["int8"])
    graph, seen = build_graphs(decoder)[PREFILL], 0
    for operation in graph.operations:
        if operation.kind == "Conv2d":
            value, kernel = operation.inputs
            assert isinstance(value, Value)
            assert isinstance(kernel, Kernel)
            expected = kernel_columns(kernel.matrix.in_features, kernel.matrix.format.group_size)
            assert value.shape[-1] == expected
            seen += 1
    assert seen == 7 * len(decoder.spec.layers) + 1
    kernels = [operand for operation in graph.operations for operand in operation.inputs if isinstance(operand, Kernel)]
    padded = any(kernel.matrix.in_features % CHANNEL_MULTIPLE for kernel in kernels)
    assert any(operation.kind == "Pad" for operation in graph.operations) == padded


@given(in_features=st.integers(1, 4096), group=st.sampled_from([16, 32, 64, 128]))
@examples(200)
def test_blocks_divide_groups_and_padded_channels_and_are_at_least_16_wide(in_features: int, group: int) -> None:
    columns = kernel_columns(in_features, group)
    assert in_features <= columns < in_features + max(group, CHANNEL_MULTIPLE)
    assert columns % CHANNEL_MULTIPLE == 0
    block = kernel_block(columns, group)
    assert columns % block == 0
    assert group % block == 0
    assert block >= SMALLEST_BLOCK


def test_masked_scores_saturate_below_every_score_and_visible_ones_pass_unchanged() -> None:
    decoder = decoder_of(MODELS["plain"], KV_FORMATS["int8"], 7, 1)
    encodings, graph = calibrated_encodings(decoder), build_graphs(decoder)[PREFILL]
    masks = [value for value in graph.inputs if value.name.startswith("mask_")]
    scores = [operation.inputs[0] for operation in graph.operations if operation.kind == "Softmax"]
    assert len(scores) == len(decoder.spec.layers)
    for mask in masks:
        visible, hidden = encodings[mask.name].dequantize(torch.tensor([65535, 0]))
        assert float(visible) == 0.0
        for score in scores:
            assert isinstance(score, Value)
            span = encodings[score.name].high - encodings[score.name].low
            assert float(hidden) <= -span * (1 - 1e-6)


finite = st.floats(-1e6, 1e6)
storages = st.sampled_from([Storage.UINT16, Storage.UINT8])


@given(low=finite, high=finite, storage=storages)
@examples(200)
def test_zero_is_exact_in_every_encoding_of_a_range(low: float, high: float, storage: Storage) -> None:
    encoding = Encoding.of_range(min(low, high), max(low, high), storage)
    assert encoding.scale > 0
    assert 0 <= encoding.zero_point <= storage.levels
    assert float(encoding.snap(torch.zeros(1))) == 0.0
    assert int(encoding.quantize(torch.zeros(1))) == encoding.zero_point


@given(low=finite, high=finite, storage=storages, seed=st.integers(0, 2**31))
@examples(200)
def test_snapping_is_idempotent_and_errs_by_half_a_step_inside_the_range(
    low: float, high: float, storage: Storage, seed: int
) -> None:
    low, high = sorted((low, high))
    encoding = Encoding.of_range(low, high, storage)
    values = low + (high - low) * torch.rand(64, generator=torch.Generator().manual_seed(seed))
    snapped = encoding.snap(values)
    assert torch.equal(encoding.snap(snapped), snapped)
    rounding = 2e-7 * max(abs(low), abs(high))
    limit = torch.full((64,), encoding.scale * 0.51 + rounding)
    assert bool(((snapped - values.clamp(encoding.low, encoding.high)).abs() <= limit).all())
    assert encoding.low <= low + encoding.scale * 0.51
    assert encoding.high >= high - encoding.scale * 0.51


@given(low=finite, high=finite, storage=storages)
@examples(100)
def test_values_outside_the_range_saturate(low: float, high: float, storage: Storage) -> None:
    encoding = Encoding.of_range(min(low, high), max(low, high), storage)
    assert encoding.quantize(torch.tensor([-1e9, 1e9])).tolist() == [0, storage.levels]


def test_ranges_are_widened_by_the_margin_on_both_sides_of_zero() -> None:
    decoder = decoder_of(MODELS["plain"], KV_FORMATS["int8"], 7, 1)
    encodings, tokens = calibrated_encodings(decoder), random_tokens(decoder.spec, 8 * CHUNK, 0)
    logits = GraphSession(decoder).run(tokens, 0)
    span = float(logits.max() - logits.min())
    assert encodings["logits"].high >= float(logits.max()) + 0.9 * MARGIN * span
    assert encodings["logits"].low <= float(logits.min()) - 0.9 * MARGIN * span


@pytest.mark.parametrize("factor", [None, 1.3])
def test_largest_cosine_and_zero_are_exact_rotary_codes(factor: float | None) -> None:
    scaling = RotaryScaling(RotaryScalingKind.YARN, 4.0, 64, attention_factor=factor) if factor else None
    encoding = rotary_encoding(RotarySpec(8, 10000.0, scaling))
    top = factor or 1.0
    values = torch.tensor([-top, 0.0, top])
    assert encoding.quantize(values).tolist() == [1, 32768, 65535]
    torch.testing.assert_close(encoding.snap(values), values)


def test_the_nibble_table_holds_both_codes_of_every_byte() -> None:
    encoding = Encoding(Storage.UINT8, 0.25, 8)
    table = nibble_table(encoding)
    codes = torch.arange(256)
    expected = torch.stack(((codes % 16 - 8) * 0.25, (codes // 16 - 8) * 0.25), 1)
    assert torch.equal(table.data, expected)
    assert torch.equal(table.encoding.snap(table.data), expected)


def test_a_reshape_to_another_count_is_refused() -> None:
    decoder = decoder_of(MODELS["plain"], KV_FORMATS["int8"])
    ops = QnnOps(
        "broken",
        decoder.spec,
        decoder.weights,
        decoder.layout,
        2,
        decoder.kv_format,
        decoder.kv_constants,
        Encoding(Storage.UINT16, 1.0, 0),
    )
    with pytest.raises(ValueError, match="cannot reshape"):
        ops.split_heads(Value("odd", (1, 1, 2, 9)), 2)


def test_constants_survive_their_own_encoding_to_one_part_in_60000() -> None:
    data = normal(3, 50)
    constant = Constant("gain", data)
    span = float(data.max() - data.min())
    assert float((constant.encoding.snap(data) - data).abs().max()) < span / 60000
