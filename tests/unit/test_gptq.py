"""GPTQ: better than rounding in the metric of the inputs, independent of its update blocks, robust to dead inputs."""

from __future__ import annotations

import pytest
import torch
from helpers import normal

from exporter.quantize import gptq
from exporter.quantize.formats import ScaleFormat, WeightFormat
from exporter.quantize.gptq import GptqRounder, inverse_factor
from exporter.quantize.int4 import QuantizedMatrix, ScaleChooser, quantize_nearest, round_to_codes, split_rows

FP16_32 = WeightFormat(4, 32, ScaleFormat.FP16)
LPBQ_32 = WeightFormat(4, 32, ScaleFormat.LPBQ)
ALIGNED = [
    pytest.param(columns, WeightFormat(4, group, scale), id=f"{columns}-by-{group}-{scale.value}")
    for columns, group in ((64, 16), (128, 32), (200, 32), (72, 128), (192, 128), (300, 128))
    for scale in ScaleFormat
] + [pytest.param(300, WeightFormat(8, 300, ScaleFormat.FP16), id="300-int8-one-group")]
STRADDLING = [
    pytest.param(200, WeightFormat(4, group, ScaleFormat.FP16), id=f"200-by-{group}-straddling")
    for group in (48, 96, 100)
]
CASES = ALIGNED + STRADDLING


def quantize_gptq(weight: torch.Tensor, covariance: torch.Tensor, weight_format: WeightFormat) -> QuantizedMatrix:
    return GptqRounder(covariance, weight_format).quantize(weight)


def correlated_inputs(columns: int, tokens: int = 600, seed: int = 0) -> torch.Tensor:
    """Inputs that a quarter of the directions nearly explain, with channels of unequal size: [tokens, columns]."""
    mixing = normal(seed + 1, columns // 4, columns)
    sizes = torch.exp(0.7 * normal(seed + 2, columns))
    return (normal(seed, tokens, columns // 4) @ mixing + 0.1 * normal(seed + 3, tokens, columns)) * sizes


def covariance_of(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.T @ inputs


def output_error(matrix: QuantizedMatrix, weight: torch.Tensor, covariance: torch.Tensor) -> float:
    """Squared error of the outputs over all calibration tokens."""
    difference = (matrix.dequantize() - weight).double()
    return float(((difference @ covariance.double()) * difference).sum())


def column_by_column(
    weight: torch.Tensor, covariance: torch.Tensor, weight_format: WeightFormat, damping: float
) -> QuantizedMatrix:
    """GPTQ without blocks, in double precision, every column's error pushed onto all later columns at once."""
    columns, group = weight.shape[1], weight_format.group_size
    damped = covariance.double()
    damped = damped + torch.eye(columns, dtype=torch.float64) * damping * damped.diagonal().mean()
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    chooser = ScaleChooser(weight, weight_format, search=True)
    current = weight.double()
    codes, scales = torch.empty(weight.shape, dtype=torch.int8), []
    for column in range(columns):
        if column % group == 0:
            span = slice(column, column + group)
            scales.append(chooser.choose(current[:, span].float(), covariance.diagonal()[span]))
        scale = scales[-1].double()
        code = round_to_codes(current[:, column], scale, weight_format.code_range)
        codes[:, column] = code.to(torch.int8)
        error = (current[:, column] - code * scale) / factor[column, column]
        current[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
    return chooser.build(codes, torch.stack(scales, 1))


@pytest.mark.parametrize(("columns", "weight_format"), CASES)
def test_output_error_is_clearly_below_rounding_and_search(columns: int, weight_format: WeightFormat) -> None:
    weight, covariance = normal(9, 20, columns), covariance_of(correlated_inputs(columns))
    found = output_error(quantize_gptq(weight, covariance, weight_format), weight, covariance)
    nearest = output_error(quantize_nearest(weight, weight_format), weight, covariance)
    searched = output_error(
        quantize_nearest(weight, weight_format, search=True, importance=covariance.diagonal()), weight, covariance
    )
    assert found < 0.6 * nearest
    assert found < 0.6 * searched


@pytest.mark.parametrize(("columns", "weight_format"), ALIGNED)
def test_blocked_updates_equal_updates_column_by_column(columns: int, weight_format: WeightFormat) -> None:
    weight, covariance = normal(4, 24, columns), covariance_of(correlated_inputs(columns))
    found = quantize_gptq(weight, covariance, weight_format)
    expected = column_by_column(weight, covariance, weight_format, 0.01)
    assert float((found.codes() == expected.codes()).float().mean()) > 0.995
    assert float((found.scales == expected.scales).float().mean()) > 0.99
    assert output_error(found, weight, covariance) == pytest.approx(
        output_error(expected, weight, covariance), rel=0.01
    )


@pytest.mark.parametrize(("columns", "weight_format"), STRADDLING)
def test_groups_across_two_blocks_cost_little_for_choosing_their_scale_early(
    columns: int, weight_format: WeightFormat
) -> None:
    weight, covariance = normal(4, 24, columns), covariance_of(correlated_inputs(columns))
    found = quantize_gptq(weight, covariance, weight_format)
    expected = column_by_column(weight, covariance, weight_format, 0.01)
    assert output_error(found, weight, covariance) < 1.15 * output_error(expected, weight, covariance)


@pytest.mark.parametrize("block", [1, 16, 128, 1000])
def test_the_size_of_update_blocks_does_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, covariance = normal(6, 24, 200), covariance_of(correlated_inputs(200))
    expected = quantize_gptq(weight, covariance, FP16_32)
    monkeypatch.setattr(gptq, "UPDATE_BLOCK", block)
    found = quantize_gptq(weight, covariance, FP16_32)
    assert float((found.codes() == expected.codes()).float().mean()) > 0.995


@pytest.mark.parametrize("weight_format", [FP16_32, LPBQ_32], ids=lambda entry: entry.scale_format.value)
def test_uncorrelated_inputs_leave_nothing_to_gain_over_search(weight_format: WeightFormat) -> None:
    weight = normal(2, 32, 200)
    found = quantize_gptq(weight, torch.eye(200), weight_format)
    expected = quantize_nearest(weight, weight_format, search=True, importance=torch.ones(200))
    assert torch.equal(found.scales, expected.scales)
    assert torch.equal(found.codes(), expected.codes())


@pytest.mark.parametrize(("columns", "weight_format"), CASES)
def test_codes_and_scales_obey_their_formats(columns: int, weight_format: WeightFormat) -> None:
    matrix = quantize_gptq(normal(1, 16, columns), covariance_of(correlated_inputs(columns)), weight_format)
    low, high = weight_format.code_range
    assert low <= int(matrix.codes().min()) <= int(matrix.codes().max()) <= high
    assert bool((matrix.scales > 0).all())
    if weight_format.scale_format is ScaleFormat.LPBQ:
        assert matrix.channel_scales is not None
        assert matrix.multipliers is not None
        assert 1 <= int(matrix.multipliers.min()) <= int(matrix.multipliers.max()) <= 16
        assert torch.equal(matrix.scales, matrix.channel_scales[:, None] * matrix.multipliers.float())
    dtype = torch.bfloat16 if weight_format.scale_format is ScaleFormat.BF16 else torch.float16
    assert torch.equal(matrix.scales.to(dtype).float(), matrix.scales)


@pytest.mark.parametrize("rows", [1, 16])
def test_equal_inputs_give_equal_codes_and_leave_the_arguments_alone(rows: int) -> None:
    weight, covariance = normal(3, rows, 200), covariance_of(correlated_inputs(200))
    before = weight.clone(), covariance.clone()
    first, second = quantize_gptq(weight, covariance, LPBQ_32), quantize_gptq(weight, covariance, LPBQ_32)
    assert torch.equal(first.packed, second.packed)
    assert torch.equal(first.scales, second.scales)
    assert torch.equal(weight, before[0])
    assert torch.equal(covariance, before[1])


@pytest.mark.parametrize("scale_format", list(ScaleFormat))
def test_matrices_stacked_over_a_common_input_are_quantized_as_if_alone(scale_format: ScaleFormat) -> None:
    parts, covariance = [normal(seed, 8 + seed, 96) for seed in range(3)], covariance_of(correlated_inputs(96))
    weight_format = WeightFormat(4, 32, scale_format)
    together = split_rows(quantize_gptq(torch.cat(parts), covariance, weight_format), [8, 9, 10])
    for found, part in zip(together, parts, strict=True):
        alone = quantize_gptq(part, covariance, weight_format)
        assert found.codes().shape == part.shape
        assert float((found.codes() == alone.codes()).float().mean()) > 0.995
        assert float((found.scales == alone.scales).float().mean()) > 0.99


def test_splitting_rows_keeps_every_part_of_each_row() -> None:
    matrix = quantize_nearest(normal(1, 7, 40), LPBQ_32)
    pieces = split_rows(matrix, [2, 5])
    for piece, rows in zip(pieces, (slice(0, 2), slice(2, 7)), strict=True):
        assert matrix.channel_scales is not None
        assert matrix.multipliers is not None
        assert torch.equal(piece.dequantize(), matrix.dequantize()[rows])
        assert torch.equal(piece.channel_scales, matrix.channel_scales[rows])
        assert torch.equal(piece.multipliers, matrix.multipliers[rows])


def test_fewer_tokens_than_channels_still_beat_rounding() -> None:
    weight, covariance = normal(7, 24, 160), covariance_of(correlated_inputs(160, tokens=30))
    found = quantize_gptq(weight, covariance, LPBQ_32)
    assert bool(found.dequantize().isfinite().all())
    nearest = quantize_nearest(weight, LPBQ_32)
    assert output_error(found, weight, covariance) < 0.3 * output_error(nearest, weight, covariance)


def test_scattered_dead_channels_receive_no_error_from_others() -> None:
    inputs, dead = correlated_inputs(160), torch.tensor([3, 40, 127, 128, 159])
    inputs[:, dead] = 0.0
    weight, covariance = normal(8, 24, 160), covariance_of(inputs)
    found = quantize_gptq(weight, covariance, FP16_32)
    scales = found.scales[:, dead // 32]
    expected = round_to_codes(weight[:, dead], scales, (-8, 7))
    assert torch.equal(found.codes()[:, dead].float(), expected)
    nearest = quantize_nearest(weight, FP16_32)
    assert output_error(found, weight, covariance) < 0.6 * output_error(nearest, weight, covariance)


@pytest.mark.parametrize("scale_format", list(ScaleFormat))
def test_a_group_of_dead_channels_keeps_its_weights(scale_format: ScaleFormat) -> None:
    inputs, dead = correlated_inputs(160), slice(32, 64)
    inputs[:, dead] = 0.0
    weight, weight_format = normal(8, 24, 160), WeightFormat(4, 32, scale_format)
    found = quantize_gptq(weight, covariance_of(inputs), weight_format).dequantize()
    nearest = quantize_nearest(weight, weight_format).dequantize()
    lost, usual = (float((rows - weight)[:, dead].square().sum()) for rows in (found, nearest))
    assert lost < 2 * usual


def test_inputs_that_are_all_dead_fall_back_to_rounding() -> None:
    weight = normal(8, 24, 96)
    found = quantize_gptq(weight, torch.zeros(96, 96), LPBQ_32).dequantize()
    nearest = quantize_nearest(weight, LPBQ_32).dequantize()
    assert float((found - weight).square().sum()) < 2 * float((nearest - weight).square().sum())


@pytest.mark.parametrize("size", [5, 192, 500])
def test_the_factor_is_upper_triangular_and_squares_to_the_inverse(size: int) -> None:
    rows = normal(3, 2 * size, size)
    factor = inverse_factor(rows.T @ rows, damping=0.1).double()
    damped = (rows.T @ rows).double()
    damped += 0.1 * damped.diagonal().mean() * torch.eye(size)
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-4)
    assert torch.equal(factor, factor.triu())
