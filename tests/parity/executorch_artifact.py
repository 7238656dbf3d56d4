"""Lowers a quantized decoder to an ExecuTorch program in this process, and compares what the runtime makes of it with the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.decoder.cache import CacheSettings
from exporter.quantize.formats import KvFormat, ScaleFormat, WeightFormat
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, save_quantized
from exporter.targets.executorch.chunks import ChunkedDriver
from exporter.targets.executorch.xnnpack.driver import open_driver
from exporter.targets.executorch.xnnpack.lower import lower_in_child
from exporter.verify.parity import compare_logits, window_logits
from tests.unit.helpers import TinyModel, quantized_decoder, random_tokens

FLOAT = {"activation_bits": 32}
BF16_32 = WeightFormat(4, 32, ScaleFormat.BF16)


def lower_executorch(
    model: TinyModel, cache: CacheSettings, kv_format: KvFormat, folder: Path, settings: dict[str, Any] = FLOAT
) -> QuantizedDecoder:
    """Slots in blocks, as the target rounds them where attention reads packed codes."""
    packed = kv_format.bits <= 8 and settings.get("operators") != "plain"
    decoder = quantized_decoder(model, cache, kv_format, BF16_32, 16 if packed else 1)
    save_quantized(decoder, folder)
    lower_in_child({"quantized": str(folder), "artifact": str(folder), "settings": settings}, lambda event: None)
    return decoder


def scored(driver: ChunkedDriver, token_ids: list[int], prefilled: int) -> torch.Tensor:
    """Logits of every token: the first `prefilled` in chunks, the rest one by one."""
    logits = [driver.prefill(token_ids[:prefilled])] if prefilled else []
    logits += [driver.decode(token_id)[None] for token_id in token_ids[prefilled:]]
    return torch.from_numpy(np.concatenate(logits))


def require_parity(
    decoder: QuantizedDecoder, folder: Path, largest_mean_kl: float = 2e-3, least_agreement: float = 0.97
) -> None:
    """Codes that lie on a border may fall either way: agreement is judged over all tokens, not per logit."""
    token_ids = random_tokens(decoder.spec, 90, seed=5)
    expected = window_logits(decoder.oracle(), decoder.spec, token_ids, decoder.chunk)
    driver = open_driver(folder)
    for prefilled in (0, 60, 90):
        driver.reset()
        figures = compare_logits(expected, scored(driver, token_ids, prefilled))
        assert figures.mean_kl < largest_mean_kl
        assert figures.top1_agreement > least_agreement
