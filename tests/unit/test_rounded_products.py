"""Products of rounded activations with INT4 weights, against the same arithmetic in numpy."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from kernel_calls import address, kernel_library

from exporter.quantize.formats import ScaleFormat, WeightFormat
from exporter.quantize.int4 import quantize_nearest

RUN = 32
"""Activations that share a scale."""


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return kernel_library()


def rounded(rows: np.ndarray) -> np.ndarray:
    """What the codes of activations [tokens, columns] stand for."""
    runs = rows.reshape(rows.shape[0], -1, RUN)
    scale = np.abs(runs).max(-1, keepdims=True) / 127
    return (np.rint(runs / np.where(scale == 0, 1, scale)) * scale).reshape(rows.shape)


@pytest.mark.parametrize(("columns", "group"), [(32, 32), (96, 32), (256, 128)])
def test_rounded_products_equal_those_of_the_codes(library: ctypes.CDLL, columns: int, group: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(24, columns, generator=generator)
    rows = torch.randn(5, columns, generator=generator) * torch.logspace(-3, 3, columns)
    rows[3], rows[4, :RUN] = 0, 0
    matrix = quantize_nearest(weight, WeightFormat(4, group, ScaleFormat.FP16))
    codes, scales = (matrix.packed ^ 0x88).contiguous(), matrix.scales.half().contiguous()
    sizes, out = np.array((24, columns, group, 5), np.int64), np.empty((5, 24), np.float32)
    given = rows.numpy().copy()
    assert library.slm_rounded_product(*map(address, (sizes, codes, scales, given, out)))
    expected = rounded(given) @ matrix.dequantize().numpy().T
    assert np.allclose(out, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert not out[3].any()


@pytest.mark.parametrize(("columns", "group"), [(48, 16), (80, 32)])
def test_groups_that_do_not_allow_it_are_left_to_floats(library: ctypes.CDLL, columns: int, group: int) -> None:
    sizes, room = np.array((1, columns, group, 1), np.int64), np.zeros(256, np.float32)
    assert not library.slm_rounded_product(*map(address, (sizes, room, room, room, room)))
