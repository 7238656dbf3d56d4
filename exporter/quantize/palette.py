"""Palettes: 16 numbers that a group of rows shares, and a 4-bit index for every weight. What the Neural Engine reads without losing
speed, where scaled codes in blocks may leave it.

The numbers of a group are those that leave the least squared error (k-means in one dimension, Lloyd's algorithm), weighted per column
by how much its inputs say; with GPTQ, indices are then chosen column by column with the error pushed on, as for scaled codes.
"""

from __future__ import annotations

import torch

from exporter.quantize.formats import PALETTE_COLORS, WeightFormat
from exporter.quantize.int4 import QuantizedMatrix, pack_nibbles

LLOYD_STEPS = 40
"""More gain less than a percent of the squared error, on normal and on heavy-tailed weights."""


def choose_palettes(
    weight: torch.Tensor, weight_format: WeightFormat, importance: torch.Tensor | None = None
) -> torch.Tensor:
    """float32 [out, in] -> palettes in ascending order, representable in fp16: float32 [out / rows, 16].

    `importance` [in] weighs the squared error of each column.
    """
    groups = weight.shape[0] // weight_format.palette_rows
    values = weight.reshape(groups, -1)
    weights = torch.ones(weight.shape[1]) if importance is None else importance.clamp_min(1e-12)
    weights = weights.expand(weight_format.palette_rows, -1).reshape(1, -1).expand(groups, -1)
    ordered, order = values.sort(dim=1)
    sorted_weights = weights.gather(1, order).double()
    masses = _cumulative(sorted_weights)
    moments = _cumulative(sorted_weights * ordered)
    return _lloyd(ordered, masses, moments).half().float()


def nearest_indices(values: torch.Tensor, palettes: torch.Tensor, palette_rows: int) -> torch.Tensor:
    """Index of the nearest number in each row's palette: float32 [out, n] -> int8 [out, n]."""
    groups = palettes.shape[0]
    borders = ((palettes[:, 1:] + palettes[:, :-1]) / 2).contiguous()
    grouped = values.reshape(groups, palette_rows * values.shape[1]).contiguous()
    return torch.searchsorted(borders, grouped, out_int32=True).to(torch.int8).view(values.shape)


def quantize_to_palettes(
    weight: torch.Tensor, weight_format: WeightFormat, importance: torch.Tensor | None = None
) -> QuantizedMatrix:
    """Nearest number for every weight, without error feedback."""
    palettes = choose_palettes(weight, weight_format, importance)
    return palette_matrix(nearest_indices(weight, palettes, weight_format.palette_rows), palettes, weight_format)


def palette_matrix(indices: torch.Tensor, palettes: torch.Tensor, weight_format: WeightFormat) -> QuantizedMatrix:
    """The stored matrix of indices int8 [out, in] from 0 to 15."""
    no_scales = torch.empty(indices.shape[0], 0)
    return QuantizedMatrix(pack_nibbles(indices), no_scales, indices.shape[1], weight_format, palettes=palettes)


def _cumulative(numbers: torch.Tensor) -> torch.Tensor:
    """Sums of the first 0, 1, ... n numbers of each row."""
    return torch.nn.functional.pad(numbers.cumsum(1), (1, 0))


def _lloyd(ordered: torch.Tensor, masses: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Sorted values [groups, n] and cumulative sums [groups, n + 1] -> centres [groups, 16]. It starts halfway between equal shares of
    the mass and even steps, which are too few and too many numbers for the tails: from there it needs the fewest steps and ends with
    the least error. A number that no weight is nearest to stays."""
    shares = (torch.arange(PALETTE_COLORS) + 0.5) / PALETTE_COLORS
    places = torch.searchsorted(masses, shares * masses[:, -1:]).clamp(1, ordered.shape[1]) - 1
    low, high = ordered[:, :1], ordered[:, -1:]
    centers = (ordered.gather(1, places) + low + (high - low) * shares).double() / 2
    for _ in range(LLOYD_STEPS):
        borders = ((centers[:, 1:] + centers[:, :-1]) / 2).float().contiguous()
        cuts = torch.searchsorted(ordered, borders)
        ends = torch.nn.functional.pad(torch.nn.functional.pad(cuts, (1, 0)), (0, 1), value=ordered.shape[1])
        mass = masses.gather(1, ends).diff(dim=1)
        moment = moments.gather(1, ends).diff(dim=1)
        centers = torch.where(mass > 0, moment / mass.clamp_min(1e-300), centers)
    return centers.float().sort(dim=1).values
