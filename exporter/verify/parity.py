"""Artifact against oracle, token by token, on teacher-forced text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from exporter.decoder.forward import decode_chunk, decode_embedding, decode_head, decode_layer
from exporter.decoder.sequence_ops import SequenceOps
from exporter.decoder.spec import EMBEDDING, DecoderSpec, embedding_weights, head_weights, layer_weights
from exporter.decoder.torch_ops import TorchOps
from exporter.decoder.weights import DecoderWeights, WeightStore

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
    """Two float32 [tokens, V]. KL is of the artifact from the oracle, in nats."""
    expected, found = oracle.log_softmax(-1), artifact.log_softmax(-1)
    divergence = (expected.exp() * (expected - found)).sum(-1).clamp_min(0)
    first, chosen = oracle.argmax(-1), artifact.argmax(-1)
    differs = first != chosen
    gap = oracle.gather(-1, first[:, None]) - oracle.gather(-1, chosen[:, None])
    return ParityFigures(
        oracle.shape[0],
        float((oracle - artifact).abs().max()),
        float(divergence.mean()),
        1 - int(differs.sum()) / oracle.shape[0],
        int(differs.sum()),
        int((differs & (gap[:, 0] < NEAR_TIE_LOGITS)).sum()),
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
    """Summed negative log-likelihood of each window in full precision, with one layer's weights in memory at a time."""
    first, length = {weight.name: source.dense(weight.name) for weight in embedding_weights(spec)}, len(windows[0])
    hidden = decode_embedding(SequenceOps(DecoderWeights({}, first), length), spec, torch.tensor(windows).flatten())
    for index in range(len(spec.layers)):
        dense = {weight.name: source.dense(weight.name) for weight in layer_weights(spec, index)}
        hidden = decode_layer(SequenceOps(DecoderWeights({}, dense), length), spec, index, hidden)
    dense = {weight.name: source.dense(weight.name) for weight in head_weights(spec)}
    dense |= {EMBEDDING: first[EMBEDDING]} if spec.tied_embedding else {}
    ops, sums = SequenceOps(DecoderWeights({}, dense), length), []
    for rows, window in zip(hidden.split(length), windows, strict=True):
        meter = PerplexityMeter()
        meter.add(decode_head(ops, spec, rows), window)
        sums.append(meter.negative_log_likelihood)
    return sums
