"""Palettes: how they are chosen, what they cost, and how they are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import TinyModel, normal

from exporter.decoder.weights import DecoderWeights
from exporter.errors import PlanRefused
from exporter.plan import check_refusals
from exporter.quantize.formats import ScaleFormat, WeightFormat
from exporter.quantize.gptq import GptqRounder
from exporter.quantize.int4 import split_rows
from exporter.quantize.palette import choose_palettes, nearest_indices, quantize_to_palettes
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized, save_quantized
from exporter.recipe import load_recipe
from exporter.targets.base import find_target

ROWS_4 = WeightFormat(4, 32, ScaleFormat.FP16, palette_rows=4)


def test_sixteen_numbers_of_equal_share_are_their_own_palette() -> None:
    numbers = torch.linspace(-1, 1, 16).half().float()
    group = numbers.repeat(10)[torch.randperm(160, generator=torch.Generator().manual_seed(1))].view(4, 40)
    weight = torch.cat((group, 2 * group))
    assert torch.equal(quantize_to_palettes(weight, ROWS_4).dequantize(), weight)


def test_palettes_are_ascending_fp16_numbers_and_leave_less_error_than_even_steps() -> None:
    weight = normal(1, 16, 96)
    palettes = choose_palettes(weight, ROWS_4)
    assert palettes.shape == (4, 16)
    assert torch.equal(palettes, palettes.half().float())
    assert (palettes.diff(dim=1) >= 0).all()
    error = (quantize_to_palettes(weight, ROWS_4).dequantize() - weight).square().mean()
    grouped = weight.reshape(4, -1)
    steps = torch.linspace(0, 1, 16) * (grouped.amax(1) - grouped.amin(1))[:, None] + grouped.amin(1)[:, None]
    even = steps.gather(1, nearest_indices(weight, steps, 4).reshape(4, -1).long())
    assert error < 0.7 * (even - grouped).square().mean()


def test_the_nearest_number_is_chosen() -> None:
    weight = normal(2, 8, 50)
    palettes = choose_palettes(weight, ROWS_4)
    every = (weight[:, :, None] - palettes.repeat_interleave(4, 0)[:, None]).abs()
    chosen = every.gather(2, nearest_indices(weight, palettes, 4).long()[..., None])[..., 0]
    assert torch.equal(chosen, every.amin(-1))


def test_columns_that_matter_more_are_kept_better() -> None:
    weight, importance = normal(3, 16, 64), torch.ones(64)
    importance[:8] = 400

    def error(matrix_weights: torch.Tensor | None) -> torch.Tensor:
        return (quantize_to_palettes(weight, ROWS_4, matrix_weights).dequantize() - weight)[:, :8].square().mean()

    assert error(importance) < error(None)


def test_rows_of_zeros_stay_zero() -> None:
    weight = normal(4, 8, 32)
    weight[4:] = 0
    assert not quantize_to_palettes(weight, ROWS_4).dequantize()[4:].any()


def test_gptq_serves_the_output_better_than_the_nearest_number() -> None:
    weight, mixing = normal(5, 32, 64), normal(6, 64, 64)
    inputs = normal(7, 400, 64) @ mixing
    covariance = inputs.T @ inputs

    def loss(dequantized: torch.Tensor) -> float:
        return float((inputs @ (dequantized - weight).T).square().mean())

    nearest = quantize_to_palettes(weight, ROWS_4, covariance.diagonal()).dequantize()
    assert loss(GptqRounder(covariance, ROWS_4).quantize(weight).dequantize()) < 0.7 * loss(nearest)


def test_stacked_rows_come_apart_as_they_went_in() -> None:
    matrix = quantize_to_palettes(normal(8, 24, 40), ROWS_4)
    parts = split_rows(matrix, [8, 4, 12])
    assert torch.equal(torch.cat([part.dequantize() for part in parts]), matrix.dequantize())
    index = torch.tensor([3, 11, 0])
    assert torch.equal(parts[2].rows(index), parts[2].dequantize()[index])


def test_bytes_are_indices_and_tables() -> None:
    assert WeightFormat(4, 32, ScaleFormat.LPBQ, 8).stored_bytes(24, 100) == 24 * 50 + 3 * 32


def test_a_checkpoint_keeps_palettes(tmp_path: Path) -> None:
    matrix = quantize_to_palettes(normal(9, 8, 20), ROWS_4)
    weights = DecoderWeights({"matrix": matrix}, {"gain": torch.ones(3)})
    save_quantized(QuantizedDecoder.without_cache(TinyModel().spec(), weights), tmp_path)
    again = load_quantized(tmp_path).weights
    assert again.quantized("matrix").format == ROWS_4
    assert torch.equal(again.dense("matrix"), matrix.dequantize())
    assert list(again.vectors) == ["gain"]


@pytest.mark.parametrize("recipe", ["android-npu", "onnx-cpu"])
def test_targets_without_palettes_refuse_them(recipe: str) -> None:
    chosen = load_recipe(recipe, ("weights.palette_rows=8",))
    with pytest.raises(PlanRefused, match=r"palette_rows=0"):
        check_refusals(TinyModel().spec(), chosen, find_target(chosen.target.kind))


def test_rows_that_a_palette_would_cut_are_refused_with_the_number_that_fits() -> None:
    spec = TinyModel(vocab_size=60, windows=(None,)).spec()
    for rows, fits in ((8, False), (4, True)):
        chosen = load_recipe("ios-ane", (f"weights.palette_rows={rows}", "weights.embedding_bits=4", "cache.window=64"))
        if fits:
            check_refusals(spec, chosen, find_target(chosen.target.kind))
            continue
        with pytest.raises(PlanRefused, match=r"weights\.palette_rows=4"):
            check_refusals(spec, chosen, find_target(chosen.target.kind))
