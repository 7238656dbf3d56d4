"""Artifact against oracle, token by token, on teacher-forced text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from exporter.decoder.forward import decode_chunk, decode_head, decode_hidden
from exporter.decoder.sequence_ops import SequenceOps
from exporter.decoder.spec import DecoderSpec
from exporter.decoder.torch_ops import TorchOps
from exporter.decoder.weights import WeightStore, row_blocks

NEAR_TIE_LOGITS = 0.1
"""A disagreement is a near-tie when the oracle itself separates the two choices by less than this."""


@dataclass(frozen=True)
class ParityFigures:
    """`near_ties` counts the disagreements that are near-ties."""

    tokens: int
    max_abs_error: float
    mean_kl: float
    top1_agreement: float
    disagreements: int
    near_ties: int


def compare_logits(oracle: torch.Tensor, artifact: torch.Tensor) -> ParityFigures:
    """Two float32 [tokens, V], looked at block by block. KL is of the artifact from the oracle, in nats."""
    tokens, largest, divergence, disagreements, near_ties = oracle.shape[0], torch.zeros(1), 0.0, 0, 0
    for block in row_blocks(*oracle.shape):
        wanted, made = oracle[block], artifact[block]
        expected, found = wanted.log_softmax(-1), made.log_softmax(-1)
        divergence += float((expected.exp() * (expected - found)).sum(-1).clamp_min(0).double().sum())
        first, chosen = wanted.argmax(-1), made.argmax(-1)
        differs = first != chosen
        gap = wanted.gather(-1, first[:, None]) - wanted.gather(-1, chosen[:, None])
        largest = torch.maximum(largest, (wanted - made).abs().max())  # unlike max(), it keeps NaN
        disagreements += int(differs.sum())
        near_ties += int((differs & (gap[:, 0] < NEAR_TIE_LOGITS)).sum())
    return ParityFigures(
        tokens, float(largest), divergence / tokens, 1 - disagreements / tokens, disagreements, near_ties
    )


def window_logits(ops: TorchOps, spec: DecoderSpec, window: Sequence[int], chunk: int) -> torch.Tensor:
    """Teacher-forced logits of one window in chunks: float32 [len(window), V]."""
    ops.reset()
    pieces = torch.tensor(window).split(chunk)
    return torch.cat([decode_chunk(ops, spec, piece) for piece in pieces])


class PerplexityMeter:
    """Accumulates next-token log-likelihood; the first token of a window is given, not predicted."""

    def __init__(self) -> None:
        self.negative_log_likelihood, self.tokens = 0.0, 0

    def add(self, logits: torch.Tensor, window: Sequence[int]) -> None:
        """float32 [n, V] and the n token ids that produced them."""
        targets = torch.tensor(window[1:])
        self.negative_log_likelihood += float(torch.nn.functional.cross_entropy(logits[:-1], targets, reduction="sum"))
        self.tokens += len(targets)

    @property
    def perplexity(self) -> float:
        return math.exp(self.negative_log_likelihood / self.tokens)


def layerwise_perplexities(spec: DecoderSpec, source: WeightStore, windows: Sequence[Sequence[int]]) -> list[float]:
    """Summed negative log-likelihood of each window in full precision. All windows go through one layer before the next, so that a
    source on disk is read once."""
    ops, sums = SequenceOps(source, len(windows[0])), []
    hidden = decode_hidden(ops, spec, torch.tensor(windows).flatten())
    for rows, window in zip(hidden.split(len(windows[0])), windows, strict=True):
        meter = PerplexityMeter()
        meter.add(decode_head(ops, spec, rows), window)
        sums.append(meter.negative_log_likelihood)
    return sums
