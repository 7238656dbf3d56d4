"""What an expert is calibrated on. A router may send it a handful of tokens, or none: too few to tell a matrix' important directions
from noise, and GPTQ would fit its errors to them.

The covariance of such an expert is shrunk towards that of all tokens of the layer (as in Ledoit and Wolf's estimator, where a prior
counts as so many observations): tokens that were sent elsewhere fill up what is missing to `ENOUGH_PER_INPUT` rows per input channel,
with as much weight as they replace. An expert that saw enough tokens is calibrated on its own alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from exporter.decoder.experts import expert_prefix
from exporter.decoder.spec import ExpertsSpec

ENOUGH_PER_INPUT = 1.0
"""Rows per input channel from which on a covariance is left as it is: with fewer it has no full rank."""

MOST_OTHERS = 2048
"""Tokens of other experts that one expert computes at most; they lie evenly over the calibration text."""


def calibration_rows(
    prefix: str, block: ExpertsSpec, value: torch.Tensor, chosen: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """For each expert: the name of its weights, the tokens that it serves [n, D], and tokens that others serve [m, D], none where it
    needs none. `value` [N * S, D] is what the block reads, `chosen` int64 [N * S, k] the experts of each token."""
    widest = max(value.shape[1], block.expert.hidden_size)
    for expert in range(block.routing.experts):
        served = (chosen == expert).any(-1)
        own, others = value[served], value[~served]
        wanted = 0 if len(own) >= ENOUGH_PER_INPUT * widest else min(len(others), MOST_OTHERS)
        step = max(1, len(others) // max(1, wanted))
        yield expert_prefix(prefix, expert), own, others[::step][:wanted]


def filled_up(own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Rows [n + m, in] whose covariance is that of the expert's own rows [n, in], and of others' [m, in] with the weight of the rows
    that are missing."""
    missing = ENOUGH_PER_INPUT * own.shape[1] - len(own)
    if missing <= 0 or not len(others):
        return own
    return torch.cat((own, others * math.sqrt(missing / len(others))))
