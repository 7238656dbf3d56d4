"""GPTQ (arXiv 2210.17323): rounds column by column and pushes each column's error onto the columns not yet rounded, in the
metric of the layer's own inputs. Scales are searched per group when the group is reached, so they see the weights as already
corrected. CPU implementation: columns are worked off in blocks that fit the cache, the rest of the matrix follows by matrix
products.
"""

from __future__ import annotations

import numpy as np
import torch

from exporter.quantize.formats import WeightFormat
from exporter.quantize.int4 import QuantizedMatrix, ScaleChooser

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


class _ColumnRounder:
    """State of one run. `columns` holds the weight transposed, so that a column is contiguous."""

    def __init__(self, weight: torch.Tensor, rounder: GptqRounder) -> None:
        weight_format = rounder.format
        self.chooser = ScaleChooser(weight, weight_format, search=True)
        self.importance, self.factor = rounder.importance, rounder.factor
        self.columns = weight.T.clone(memory_format=torch.contiguous_format)
        self.group_size = min(weight_format.group_size, weight.shape[1])
        self.low, self.high = (np.float32(bound) for bound in weight_format.code_range)
        self.codes = torch.empty(self.columns.shape, dtype=torch.int8)
        self.scales = torch.empty(weight_format.group_count(weight.shape[1]), weight.shape[0])

    def run(self) -> QuantizedMatrix:
        count = self.columns.shape[0]
        for start in range(0, count, UPDATE_BLOCK):
            stop = min(start + UPDATE_BLOCK, count)
            errors = self._round_block(start, stop)
            self.columns[stop:].addmm_(self.factor[start:stop, stop:].T, errors, alpha=-1)
        return self.chooser.build(self.codes.T.contiguous(), self.scales.T.contiguous())

    def _round_block(self, start: int, stop: int) -> torch.Tensor:
        """Rounds columns [start, stop) and returns their scaled errors, float32 [columns, out]."""
        block, codes = self.columns[start:stop].numpy(), self.codes[start:stop].numpy()
        factor = np.ascontiguousarray(self.factor[start:stop, start:stop].numpy())
        errors = np.empty_like(block)
        for offset in range(stop - start):
            column = start + offset
            if column % self.group_size == 0:
                self._choose_scale(column)
            scale = self.scales[column // self.group_size].numpy()
            code = np.rint(block[offset] / scale)
            np.clip(code, self.low, self.high, out=code)
            codes[offset] = code
            np.subtract(block[offset], code * scale, out=errors[offset])
            errors[offset] /= factor[offset, offset]
            rest = block[offset + 1 :]
            rest -= factor[offset, offset + 1 :, None] * errors[offset]
        return torch.from_numpy(errors)

    def _choose_scale(self, column: int) -> None:
        """Groups no wider than the update block see every correction; wider ones miss those of the current block's later
        columns, which have not happened yet either."""
        group = self.columns[column : column + self.group_size]
        importance = self.importance[column : column + self.group_size]
        self.scales[column // self.group_size] = self.chooser.choose(group.T.contiguous(), importance)


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
