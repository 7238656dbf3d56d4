"""INT4 and INT8 codes: packing, scale formats, error bounds, stored sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import TinyModel, awkward_matrix, examples, normal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from exporter.quantize.formats import ScaleFormat, WeightFormat, WeightSettings
from exporter.quantize.int4 import (
    QuantizedMatrix,
    pack_nibbles,
    quantize_nearest,
    round_channel_scale,
    round_scale,
    scale_groups,
    unpack_nibbles,
)

INT4_FORMATS = [WeightFormat(4, group, scale) for group in (16, 32, 128) for scale in ScaleFormat]
INT8_FORMATS = [WeightFormat(8, 10_000, scale) for scale in (ScaleFormat.FP16, ScaleFormat.BF16)]
ALL_FORMATS = INT4_FORMATS + INT8_FORMATS

shapes = st.tuples(st.integers(1, 9), st.integers(1, 200))
seeds = st.integers(0, 2**31)


def name_of(weight_format: WeightFormat) -> str:
    return f"int{weight_format.bits}-{weight_format.group_size}-{weight_format.scale_format.value}"


every_format = pytest.mark.parametrize("weight_format", ALL_FORMATS, ids=name_of)


def group_errors(matrix: QuantizedMatrix, weight: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """Squared error of every group, in double precision: [out, groups]."""
    squares = (matrix.dequantize().double() - weight.double()).square()
    if importance is not None:
        squares = squares * importance.double()
    group = matrix.format.group_size
    return torch.stack([part.sum(1) for part in squares.split(group, dim=1)], dim=1)


def group_peaks(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Largest magnitude of every group: [out, groups]."""
    return torch.stack([part.abs().amax(1) for part in weight.split(group_size, dim=1)], dim=1)


@given(arrays(np.int8, array_shapes(min_dims=1, max_dims=3, max_side=17), elements=st.integers(-8, 7)))
@examples(150)
def test_unpacking_restores_packed_codes_of_any_length(codes: np.ndarray) -> None:
    packed = pack_nibbles(torch.from_numpy(codes))
    assert packed.dtype is torch.uint8
    assert packed.shape == (*codes.shape[:-1], math.ceil(codes.shape[-1] / 2))
    unpacked = unpack_nibbles(packed, codes.shape[-1])
    assert unpacked.dtype is torch.int8
    assert np.array_equal(unpacked.numpy(), codes)


def test_even_elements_lie_in_the_low_nibble() -> None:
    assert pack_nibbles(torch.tensor([1, -2, 7], dtype=torch.int8)).tolist() == [0xE1, 0x07]


@every_format
@pytest.mark.parametrize("search", [False, True])
def test_codes_stay_in_range_and_scales_are_positive(weight_format: WeightFormat, search: bool) -> None:
    low, high = weight_format.code_range

    @given(shapes, seeds)
    @examples(15)
    def check(shape: tuple[int, int], seed: int) -> None:
        weight = awkward_matrix(seed, *shape)
        matrix = quantize_nearest(weight, weight_format, search)
        codes = matrix.codes()
        assert codes.shape == weight.shape
        assert int(codes.min()) >= low
        assert int(codes.max()) <= high
        assert bool((matrix.scales > 0).all())
        assert matrix.scales.shape == (shape[0], weight_format.group_count(shape[1]))
        assert bool(matrix.dequantize().isfinite().all())

    check()


@every_format
def test_rows_equal_the_rows_of_the_dequantized_matrix(weight_format: WeightFormat) -> None:
    matrix = quantize_nearest(awkward_matrix(3, 11, 77), weight_format)
    index = torch.tensor([10, 0, 3, 3])
    assert torch.equal(matrix.rows(index), matrix.dequantize()[index])


@pytest.mark.parametrize(
    ("scale_format", "dtype"), [(ScaleFormat.FP16, torch.float16), (ScaleFormat.BF16, torch.bfloat16)]
)
@given(seed=seeds, exponent=st.integers(-30, 12))
@examples(30)
def test_rounded_scales_are_positive_and_exact_in_their_format(
    scale_format: ScaleFormat, dtype: torch.dtype, seed: int, exponent: int
) -> None:
    scales = round_scale(normal(seed, 50).abs() * 2.0**exponent, scale_format)
    assert torch.equal(scales.to(dtype).float(), scales)
    assert bool((scales > 0).all())


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("scale_format", "dtype"), [(ScaleFormat.FP16, torch.float16), (ScaleFormat.BF16, torch.bfloat16)]
)
def test_stored_scales_are_exact_in_their_format(
    scale_format: ScaleFormat, dtype: torch.dtype, bits: int, search: bool
) -> None:
    scales = quantize_nearest(awkward_matrix(8, 12, 130), WeightFormat(bits, 32, scale_format), search).scales
    assert torch.equal(scales.to(dtype).float(), scales)


@pytest.mark.parametrize("search", [False, True])
@given(shape=shapes, seed=seeds)
@examples(25)
def test_lpbq_scales_are_channel_scales_times_1_to_16_and_exact_in_fp16(
    search: bool, shape: tuple[int, int], seed: int
) -> None:
    matrix = quantize_nearest(awkward_matrix(seed, *shape), WeightFormat(4, 32, ScaleFormat.LPBQ), search)
    assert matrix.channel_scales is not None
    assert matrix.multipliers is not None
    assert matrix.multipliers.dtype is torch.uint8
    assert 1 <= int(matrix.multipliers.min()) <= int(matrix.multipliers.max()) <= 16
    assert torch.equal(matrix.scales, matrix.channel_scales[:, None] * matrix.multipliers.float())
    assert torch.equal(matrix.scales.half().float(), matrix.scales)


@given(exponent=st.floats(-30, 8), seed=seeds)
@examples(100)
def test_lpbq_channel_scales_of_any_magnitude_times_1_to_16_are_exact_in_fp16(exponent: float, seed: int) -> None:
    channel = round_channel_scale(normal(seed, 20).abs() * 2.0**exponent)
    products = channel[:, None] * torch.arange(1.0, 17.0)
    assert torch.equal(products.half().float(), products)


@given(exponent=st.floats(-10, 4), seed=seeds)
@examples(50)
def test_lpbq_channel_scales_are_rounded_up_by_at_most_one_of_64_steps(exponent: float, seed: int) -> None:
    scale = (normal(seed, 20).abs() + 0.01) * 2.0**exponent
    rounded = round_channel_scale(scale)
    assert bool((rounded >= scale).all())
    assert bool((rounded <= scale * (1 + 1 / 64)).all())


@every_format
def test_nearest_rounding_errs_by_about_half_a_step_and_steps_fit_the_group(weight_format: WeightFormat) -> None:
    top = weight_format.code_range[1]

    @given(shapes, seeds)
    @examples(20)
    def check(shape: tuple[int, int], seed: int) -> None:
        weight = awkward_matrix(seed, *shape)
        matrix = quantize_nearest(weight, weight_format)
        steps = scale_groups(torch.ones(shape), matrix.scales, weight_format.group_size)
        assert bool(((matrix.dequantize() - weight).abs() <= 0.54 * steps).all())
        slack = 2.0**-24 if matrix.channel_scales is None else matrix.channel_scales[:, None]
        assert bool((matrix.scales <= group_peaks(weight, weight_format.group_size) / top * 1.01 + slack).all())

    check()


@every_format
def test_searched_scales_never_have_a_larger_squared_error_than_nearest_rounding(weight_format: WeightFormat) -> None:
    @given(shapes, seeds)
    @examples(25)
    def check(shape: tuple[int, int], seed: int) -> None:
        weight = awkward_matrix(seed, *shape)
        nearest = group_errors(quantize_nearest(weight, weight_format), weight)
        searched = group_errors(quantize_nearest(weight, weight_format, search=True), weight)
        assert bool((searched <= nearest * (1 + 1e-5) + 1e-12).all())

    check()


@pytest.mark.parametrize("weight_format", INT4_FORMATS, ids=name_of)
def test_searched_int4_scales_clearly_improve_normal_weights(weight_format: WeightFormat) -> None:
    weight = normal(0, 64, 256)
    nearest = group_errors(quantize_nearest(weight, weight_format), weight).sum()
    searched = group_errors(quantize_nearest(weight, weight_format, search=True), weight).sum()
    assert float(searched) < 0.97 * float(nearest)


@given(seeds)
@examples(20)
def test_search_minimizes_the_error_weighted_by_importance(seed: int) -> None:
    weight, importance = awkward_matrix(seed, 6, 70), normal(seed + 1, 70).square()
    weight_format = WeightFormat(4, 32, ScaleFormat.LPBQ)
    weighted = quantize_nearest(weight, weight_format, search=True, importance=importance)
    blind = quantize_nearest(weight, weight_format, search=True)
    errors = group_errors(weighted, weight, importance), group_errors(blind, weight, importance)
    assert bool((errors[0] <= errors[1] * (1 + 1e-4) + 1e-12).all())


@pytest.mark.parametrize("scale_format", [ScaleFormat.FP16, ScaleFormat.BF16])
def test_a_remainder_group_is_quantized_as_if_it_were_alone(scale_format: ScaleFormat) -> None:
    weight, weight_format = awkward_matrix(4, 7, 45), WeightFormat(4, 32, scale_format)
    whole = quantize_nearest(weight, weight_format)
    first, last = quantize_nearest(weight[:, :32], weight_format), quantize_nearest(weight[:, 32:], weight_format)
    assert torch.equal(whole.scales, torch.cat((first.scales, last.scales), 1))
    assert torch.equal(whole.codes(), torch.cat((first.codes(), last.codes()), 1))


def test_each_column_reads_the_scale_of_its_own_group() -> None:
    scales = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    expanded = scale_groups(torch.ones(scales.shape[0], 9), scales, 4)
    assert expanded.tolist() == [[1.0] * 4 + [2.0] * 4 + [3.0], [4.0] * 4 + [5.0] * 4 + [6.0]]


@every_format
@pytest.mark.parametrize("search", [False, True])
def test_zero_rows_and_zero_groups_dequantize_to_exact_zeros(weight_format: WeightFormat, search: bool) -> None:
    weight = normal(1, 4, 160)
    weight[1] = 0.0
    weight[2, :128] = 0.0
    found = quantize_nearest(weight, weight_format, search).dequantize()
    assert not found[1].any()
    assert not found[2, :128].any()
    assert found[0].any()
    assert found[2, 128:].any()


@every_format
@pytest.mark.parametrize("columns", [1, 31, 96, 145])
def test_stored_bytes_equal_the_bytes_of_the_stored_tensors(weight_format: WeightFormat, columns: int) -> None:
    matrix = quantize_nearest(normal(2, 9, columns), weight_format)
    if weight_format.scale_format is ScaleFormat.LPBQ:
        assert matrix.channel_scales is not None
        assert matrix.multipliers is not None
        scale_bytes = matrix.channel_scales.nbytes + matrix.multipliers.nbytes
    else:
        dtype = torch.float16 if weight_format.scale_format is ScaleFormat.FP16 else torch.bfloat16
        scale_bytes = matrix.scales.to(dtype).nbytes
    assert weight_format.stored_bytes(9, columns) == matrix.packed.nbytes + scale_bytes


@pytest.mark.parametrize("scale_format", list(ScaleFormat))
def test_int8_tables_have_one_two_byte_scale_per_row(scale_format: ScaleFormat) -> None:
    spec = TinyModel(hidden_size=72, tied=False).spec()
    table_format = WeightSettings(scale_format=scale_format, embedding_bits=8).table_format("embedding", spec)
    table = quantize_nearest(normal(5, spec.vocab_size, 72), table_format)
    assert table.packed.dtype is torch.int8
    assert table.scales.shape == (spec.vocab_size, 1)
    assert table_format.stored_bytes(spec.vocab_size, 72) == spec.vocab_size * (72 + 2)


def test_embedding_bits_and_head_bits_are_separate_settings() -> None:
    spec = TinyModel(tied=False).spec()
    settings = WeightSettings(embedding_bits=8, head_bits=4)
    assert settings.table_format("embedding", spec).bits == 8
    assert settings.table_format("head", spec) == settings.matrix_format()
