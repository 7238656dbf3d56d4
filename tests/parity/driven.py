"""What an artifact's driver says of a conversation, beside what the oracle says."""

from __future__ import annotations

import numpy as np
import torch

from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.runtime.driver import Driver
from exporter.verify.parity import compare_logits, window_logits
from tests.unit.helpers import random_tokens


def scored(driver: Driver, token_ids: list[int], prefilled: int) -> torch.Tensor:
    """Logits of every token of a new conversation: the first `prefilled` in chunks, the rest one by one."""
    driver.reset()
    logits = [driver.prefill(token_ids[:prefilled])] if prefilled else []
    logits += [driver.decode(token_id)[None].copy() for token_id in token_ids[prefilled:]]
    return torch.from_numpy(np.concatenate(logits))


def require_driver_parity(
    driver: Driver, decoder: QuantizedDecoder, largest_mean_kl: float = 2e-3, least_agreement: float = 0.97
) -> None:
    """Codes that lie on a border may fall either way: agreement is judged over all tokens, not per logit."""
    token_ids = random_tokens(decoder.spec, 90, seed=5)
    expected = window_logits(decoder.oracle(), decoder.spec, token_ids, decoder.chunk)
    for prefilled in (0, 60, 90):
        figures = compare_logits(expected, scored(driver, token_ids, prefilled))
        assert figures.mean_kl < largest_mean_kl
        assert figures.top1_agreement > least_agreement
