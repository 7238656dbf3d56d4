"""What the oracle says when it continues a prompt greedily: the token ids that a measured run must produce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from exporter.decoder.forward import decode_chunk
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.verify.parity import NEAR_TIE_LOGITS

CANDIDATES = 4


@dataclass(frozen=True)
class GreedyReference:
    """A prompt, its greedy continuation, and at each of its tokens how far ahead of the second best it is, in logits."""

    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]
    margins: tuple[float, ...]

    def difference(self, found: Sequence[int]) -> int | None:
        """Index of the first token that differs; None when all are equal."""
        if tuple(found) == self.token_ids:
            return None
        pairs = zip(self.token_ids, found, strict=False)
        shorter = min(len(self.token_ids), len(found))
        return next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), shorter)


@torch.no_grad()
def greedy_reference(decoder: QuantizedDecoder, prompt: Sequence[int], count: int) -> GreedyReference:
    """The oracle's own greedy continuation by `count` tokens."""
    oracle, spec, token_ids, margins = decoder.oracle(), decoder.spec, [], []
    for piece in torch.tensor(prompt).split(decoder.chunk):
        logits = decode_chunk(oracle, spec, piece)
    for step in range(count):
        best, indices = logits[-1].topk(2)
        token_ids.append(int(indices[0]))
        margins.append(float(best[0] - best[1]))
        if step + 1 < count:
            logits = decode_chunk(oracle, spec, indices[:1])
    return GreedyReference(tuple(prompt), tuple(token_ids), tuple(margins))


def clear_reference(decoder: QuantizedDecoder, text: Sequence[int], length: int, count: int) -> GreedyReference:
    """A prompt of `length` tokens of a text whose continuation holds no near-tie, or the clearest of a few: where two tokens are
    equally good, the last bit of a sum would decide whether a measurement counts."""
    starts = range(0, max(1, min(len(text) - length + 1, CANDIDATES * length)), length)
    best: GreedyReference | None = None
    for start in starts:
        found = greedy_reference(decoder, text[start : start + length], count)
        if best is None or min(found.margins) > min(best.margins):
            best = found
        if min(best.margins) >= NEAR_TIE_LOGITS:
            break
    assert best is not None
    return best


@torch.no_grad()
def near_ties_followed(decoder: QuantizedDecoder, prompt: Sequence[int], found: Sequence[int]) -> int | None:
    """Follows the artifact's own tokens. How many were not the oracle's best but within a near-tie of it; None when one was worse."""
    oracle, ties = decoder.oracle(), 0
    fed = torch.tensor([*prompt, *found[:-1]])
    logits = torch.cat([decode_chunk(oracle, decoder.spec, piece) for piece in fed.split(decoder.chunk)])
    for row, token in zip(logits[len(prompt) - 1 :], found, strict=True):
        behind = float(row.max() - row[token])
        if behind >= NEAR_TIE_LOGITS:
            return None
        ties += behind > 0
    return ties
