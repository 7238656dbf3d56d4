"""A checkpoint beside the logits of transformers for the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from random_checkpoint import (
    BREAKAGE,
    WeightsInMemory,
    cached_reference_logits,
    decoder_logits,
    largest_error,
    load_reference,
    reference_logits,
)
from spec_faults import Fault

from exporter.checkpoint.checkpoint import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Pair:
    """An opened checkpoint and the logits of transformers for the same tokens."""

    checkpoint: Checkpoint
    weights: WeightsInMemory
    token_ids: torch.Tensor
    chunks: tuple[int, ...]
    context: int
    one_pass: torch.Tensor
    cached: torch.Tensor

    def logits(self) -> torch.Tensor:
        """TorchOps' logits for every token: the chunks first, the rest one by one. Reading files for every single token would take
        most of the time; one chunk from the files is compared elsewhere."""
        return decoder_logits(self.checkpoint.spec, self.weights, self.token_ids, self.chunks, self.context)

    def assert_broken_by(self, fault: Fault) -> None:
        """Asserts that both the prefill and the first decode steps after it go wrong."""
        spec, prefill = fault(self.checkpoint.spec), sum(self.chunks)
        token_ids = self.token_ids[: prefill + 6]
        wrong = decoder_logits(spec, self.weights, token_ids, self.chunks, self.context)
        assert largest_error(wrong[:prefill], self.one_pass[:prefill]) > BREAKAGE
        assert largest_error(wrong[prefill:], self.cached[prefill : len(token_ids)]) > BREAKAGE


def open_pair(
    folder: Path, token_ids: torch.Tensor, chunks: tuple[int, ...], context: int, implementation: str = "eager"
) -> Pair:
    model = load_reference(folder, implementation)
    cached = cached_reference_logits(model, token_ids, prefill=sum(chunks))
    one_pass = reference_logits(model, token_ids)
    checkpoint = open_checkpoint(folder)
    return Pair(checkpoint, WeightsInMemory.read(checkpoint), token_ids, chunks, context, one_pass, cached)
