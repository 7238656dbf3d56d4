"""GPTQ (arXiv 2210.17323): rounds column by column and pushes each column's error onto the columns not yet rounded, in the
metric of the layer's own inputs. CPU implementation with lazy block updates; scales are searched per group when the group is
reached, so they see the weights as already corrected.
"""

from __future__ import annotations

import torch

from exporter.quantize.formats import WeightFormat
from exporter.quantize.int4 import QuantizedMatrix, ScaleChooser

UPDATE_BLOCK = 128
"""Columns between two updates of the rest of the matrix: large enough for matrix products, small enough for the cache."""


class InputCovariance:
    """Sum of x x^T over calibration tokens: the Hessian of a linear layer's squared output error, up to a factor."""

    def __init__(self, in_features: int) -> None:
        self.matrix = torch.zeros(in_features, in_features)
        self.tokens = 0

    def add(self, inputs: torch.Tensor) -> None:
        """float32 [S, in]."""
        self.matrix.addmm_(inputs.T, inputs)
        self.tokens += inputs.shape[0]


def quantize_gptq(
    weight: torch.Tensor, covariance: torch.Tensor, weight_format: WeightFormat, damping: float = 0.01
) -> QuantizedMatrix:
    """Quantizes float32 [out, in] given the inputs' covariance [in, in].

    `damping` is a fraction of the mean diagonal, added so that the factorization exists for rarely used channels.
    """
    diagonal = covariance.diagonal()
    factor = _inverse_factor(covariance, damping)
    chooser = ScaleChooser(weight, weight_format, search=True)
    remaining = weight.clone()
    columns = weight.shape[1]
    group_size = min(weight_format.group_size, columns)
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], weight_format.group_count(columns))
    low, high = weight_format.code_range
    for start in range(0, columns, UPDATE_BLOCK):
        stop = min(start + UPDATE_BLOCK, columns)
        errors = torch.empty(stop - start, weight.shape[0])
        block = remaining[:, start:stop].T.contiguous()
        block_factor = factor[start:stop, start:stop]
        for offset in range(stop - start):
            column = start + offset
            if column % group_size == 0:
                group = _group_values(remaining, block, start, stop, column, group_size)
                scale = chooser.choose(group, diagonal[column : column + group.shape[1]])
                scales[:, column // group_size] = scale
            value = block[offset]
            code = torch.round(value / scale).clamp_(low, high)
            codes[:, column] = code.to(torch.int8)
            error = (value - code * scale) / block_factor[offset, offset]
            errors[offset] = error
            block[offset + 1 :].addr_(block_factor[offset, offset + 1 :], error, alpha=-1)
        remaining[:, stop:].addmm_(errors.T, factor[start:stop, stop:], alpha=-1)
    return chooser.build(codes, scales)


def _group_values(
    remaining: torch.Tensor, block: torch.Tensor, start: int, stop: int, column: int, group_size: int
) -> torch.Tensor:
    """Current values of the group that begins at `column`; columns past the block carry all updates but this block's."""
    inside = block[column - start : min(column + group_size, stop) - start].T
    beyond = remaining[:, stop : column + group_size]
    return torch.cat((inside, beyond), dim=1) if beyond.shape[1] else inside


def _inverse_factor(covariance: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper Cholesky factor of the damped inverse, in double precision because covariances are badly conditioned."""
    damped = covariance.double()
    mean = damped.diagonal().mean().clamp_min(1e-12)
    damped = damped + torch.eye(damped.shape[0], dtype=torch.float64) * (damping * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
