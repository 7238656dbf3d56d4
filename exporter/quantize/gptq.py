"""GPTQ (arXiv 2210.17323): rounds column by column and pushes each column's error onto the columns not yet rounded, in the
metric of the layer's own inputs. Scales are searched per group when the group is reached, so they see the weights as already
corrected. CPU implementation: columns are worked off in blocks that fit the cache, the rest of the matrix follows by matrix
products.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from exporter.quantize.formats import WeightFormat
from exporter.quantize.int4 import QuantizedMatrix, ScaleChooser
from exporter.quantize.palette import choose_palettes, palette_matrix

UPDATE_BLOCK = 32
"""Columns between two updates of the rest of the matrix."""

SMALLEST_TRIANGLE = 192
"""Below this size, splitting a triangle costs more than it saves."""


class GptqRounder:
    """Quantizes matrices that share their inputs' covariance [in, in]. Rows do not influence one another, so a matrix may come in
    blocks of rows, and several matrices stacked.

    `damping` is a fraction of the mean diagonal, added so that the factorization exists for rarely used channels.
    """

    def __init__(self, covariance: torch.Tensor, weight_format: WeightFormat, damping: float = 0.01) -> None:
        self.format, self.importance = weight_format, covariance.diagonal().clone()
        self.factor = inverse_factor(covariance, damping)

    def quantize(self, weight: torch.Tensor) -> QuantizedMatrix:
        """float32 [out, in]."""
        return _ColumnRounder(weight, self).run()


class _Grid(Protocol):
    """The numbers that weights may become."""

    def enter(self, column: int, columns: torch.Tensor, importance: torch.Tensor) -> None:
        """Called before column `column` is rounded, with all columns [in, out] as corrected so far."""

    def round(self, column: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One column's values [out] -> codes and what they stand for."""

    def build(self, codes: torch.Tensor) -> QuantizedMatrix:
        """The stored matrix of int8 codes [out, in]."""


class _ScaledGrid:
    """Codes times a scale per row and group. A scale is chosen when its group is reached. Groups no wider than the update block see
    every correction; wider ones miss those of the current block's later columns, which have not happened yet either."""

    def __init__(self, weight: torch.Tensor, weight_format: WeightFormat) -> None:
        self.chooser = ScaleChooser(weight, weight_format, search=True)
        self.group_size = min(weight_format.group_size, weight.shape[1])
        self.low, self.high = (np.float32(bound) for bound in weight_format.code_range)
        self.scales = torch.empty(weight_format.group_count(weight.shape[1]), weight.shape[0])

    def enter(self, column: int, columns: torch.Tensor, importance: torch.Tensor) -> None:
        if column % self.group_size == 0:
            group = columns[column : column + self.group_size]
            weights = importance[column : column + self.group_size]
            self.scales[column // self.group_size] = self.chooser.choose(group.T.contiguous(), weights)

    def round(self, column: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = self.scales[column // self.group_size].numpy()
        code = np.rint(values / scale)
        np.clip(code, self.low, self.high, out=code)
        return code, code * scale

    def build(self, codes: torch.Tensor) -> QuantizedMatrix:
        return self.chooser.build(codes, self.scales.T.contiguous())


class _PaletteGrid:
    """Palettes chosen beforehand, from the weights as they are."""

    def __init__(self, weight: torch.Tensor, weight_format: WeightFormat, importance: torch.Tensor) -> None:
        self.format, self.palettes = weight_format, choose_palettes(weight, weight_format, importance)
        colors = self.palettes.repeat_interleave(weight_format.palette_rows, 0)
        self.colors = colors.numpy()
        self.borders = np.ascontiguousarray(((colors[:, 1:] + colors[:, :-1]) / 2).T.numpy())
        self.rows = np.arange(weight.shape[0])

    def enter(self, column: int, columns: torch.Tensor, importance: torch.Tensor) -> None:
        """Nothing depends on the column."""

    def round(self, column: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        code = (values > self.borders).sum(0)
        return code, self.colors[self.rows, code]

    def build(self, codes: torch.Tensor) -> QuantizedMatrix:
        return palette_matrix(codes, self.palettes, self.format)


class _ColumnRounder:
    """State of one run. `columns` holds the weight transposed, so that a column is contiguous."""

    def __init__(self, weight: torch.Tensor, rounder: GptqRounder) -> None:
        self.importance, self.factor = rounder.importance, rounder.factor
        self.grid: _Grid = (
            _PaletteGrid(weight, rounder.format, self.importance)
            if rounder.format.palette_rows
            else _ScaledGrid(weight, rounder.format)
        )
        self.columns = weight.T.clone(memory_format=torch.contiguous_format)
        self.codes = torch.empty(self.columns.shape, dtype=torch.int8)

    def run(self) -> QuantizedMatrix:
        count = self.columns.shape[0]
        for start in range(0, count, UPDATE_BLOCK):
            stop = min(start + UPDATE_BLOCK, count)
            errors = self._round_block(start, stop)
            self.columns[stop:].addmm_(self.factor[start:stop, stop:].T, errors, alpha=-1)
        return self.grid.build(self.codes.T.contiguous())

    def _round_block(self, start: int, stop: int) -> torch.Tensor:
        """Rounds columns [start, stop) and returns their scaled errors, float32 [columns, out]."""
        block, codes = self.columns[start:stop].numpy(), self.codes[start:stop].numpy()
        factor = np.ascontiguousarray(self.factor[start:stop, start:stop].numpy())
        errors = np.empty_like(block)
        for offset in range(stop - start):
            column = start + offset
            self.grid.enter(column, self.columns, self.importance)
            codes[offset], rounded = self.grid.round(column, block[offset])
            np.subtract(block[offset], rounded, out=errors[offset])
            errors[offset] /= factor[offset, offset]
            rest = block[offset + 1 :]
            rest -= factor[offset, offset + 1 :, None] * errors[offset]
        return torch.from_numpy(errors)


def inverse_factor(covariance: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper triangular U with U^T U = (covariance + damping)^-1, float32, computed in double precision.

    Cholesky of the matrix reversed in both axes gives covariance = R R^T with R upper triangular, and U is its inverse: half the
    work of inverting first, and better conditioned.
    """
    damped = covariance.double()
    mean = damped.diagonal().mean().clamp_min(1e-12)
    damped.diagonal().add_(damping * mean)
    reversed_factor = torch.linalg.cholesky(damped.flip(0, 1))
    upper = reversed_factor.flip(0, 1)
    return _inverse_of_triangle(upper).float()


def _inverse_of_triangle(upper: torch.Tensor) -> torch.Tensor:
    """[[A, B], [0, C]] has the inverse [[A', -A' B C'], [0, C']]: half the work of solving for the identity."""
    size = upper.shape[0]
    if size <= SMALLEST_TRIANGLE:
        return torch.linalg.solve_triangular(upper, torch.eye(size, dtype=upper.dtype), upper=True)
    half, inverse = size // 2, torch.zeros_like(upper)
    first, second = _inverse_of_triangle(upper[:half, :half]), _inverse_of_triangle(upper[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, second
    inverse[:half, half:] = first @ (upper[:half, half:] @ second).neg_()
    return inverse
