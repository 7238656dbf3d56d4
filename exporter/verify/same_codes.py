"""An artifact with a coded cache, judged with the oracle's codes in its cache.

A code is a decision: where a key or value lies near the border of two codes, the last bit of 16-bit arithmetic makes it, one layer's code
moves what the next layer encodes, and artifact and oracle drift apart although neither is worse. So, beside the comparison in which each
fills its own cache, the oracle's codes are put into the artifact before every token. What then differs is the arithmetic of one token, and
the limits of a cache without codes hold for it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from exporter.child import Emit
from exporter.decoder.forward import decode_chunk
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.quantized_checkpoint import load_quantized
from exporter.runtime.driver import open_driver
from exporter.verify.parity import ParityFigures, compare_logits

TOKENS = 64
"""Tokens at the end of a window that are compared: their rings are full, and each takes a call of its own."""


class AdoptingDriver(Protocol):
    """A driver whose cache can be set."""

    def adopt(self, token_ids: list[int], stored: dict[str, np.ndarray]) -> None:
        """The conversation is `token_ids`, and the cache what `TorchOps.stored_cache` says."""

    def decode(self, token_id: int) -> np.ndarray:
        """Appends one token and returns the logits after it: float32 [V]."""


def has_codes(kv_format: KvFormat) -> bool:
    return kv_format.scaling is not KvScaling.NONE


@torch.no_grad()
def compare_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Entry point of a child process. Arguments: driver, folder, quantized (a folder), window. Returns ParityFigures."""
    decoder = load_quantized(Path(arguments["quantized"]))
    driver = cast(AdoptingDriver, open_driver(arguments["driver"], Path(arguments["folder"])))
    window, oracle = arguments["window"], decoder.oracle()
    known = max(1, len(window) - TOKENS)
    for piece in torch.tensor(window[:known]).split(decoder.chunk):
        decode_chunk(oracle, decoder.spec, piece)
    expected, found = [], []
    for position in range(known, len(window)):
        driver.adopt(window[:position], oracle.stored_cache())
        found.append(torch.from_numpy(driver.decode(window[position]).copy())[None])
        expected.append(decode_chunk(oracle, decoder.spec, torch.tensor(window[position : position + 1])))
        emit({"progress": (position + 1 - known) / (len(window) - known)})
    figures: ParityFigures = compare_logits(torch.cat(expected), torch.cat(found))
    return asdict(figures)
