"""Lowers a quantized decoder to ONNX in this process, and compares what ONNX Runtime makes of it with the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from exporter.quantize.quantized_checkpoint import QuantizedDecoder, save_quantized
from exporter.targets.onnx.driver import OnnxDriver, open_driver
from exporter.targets.onnx.lower import lower_in_child
from exporter.verify.parity import compare_logits, window_logits
from tests.unit.helpers import random_tokens

SETTINGS = {"activation_bits": 32, "attention_terms": 2}


def lower_onnx(decoder: QuantizedDecoder, folder: Path, settings: dict = SETTINGS) -> None:
    save_quantized(decoder, folder)
    arguments = {"quantized": str(folder), "artifact": str(folder), "settings": settings}
    lower_in_child(arguments, lambda event: None)


def scored(driver: OnnxDriver, token_ids: list[int], prefilled: int) -> torch.Tensor:
    """Logits of every token: the first `prefilled` in chunks, the rest one by one."""
    logits = [driver.prefill(token_ids[:prefilled])] if prefilled else []
    logits += [driver.decode(token_id)[None].copy() for token_id in token_ids[prefilled:]]
    return torch.from_numpy(np.concatenate(logits))


def require_parity(decoder: QuantizedDecoder, folder: Path) -> None:
    """An INT8 or INT4 code that lies on a border may fall either way: agreement is judged over all tokens, not per logit."""
    token_ids = random_tokens(decoder.spec, 90, seed=5)
    expected = window_logits(decoder.oracle(), decoder.spec, token_ids, decoder.chunk)
    driver = open_driver(folder)
    for prefilled in (0, 60, 90):
        driver.reset()
        figures = compare_logits(expected, scored(driver, token_ids, prefilled))
        assert figures.mean_kl < 2e-3
        assert figures.top1_agreement > 0.97
