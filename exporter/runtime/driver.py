"""One small protocol for every artifact kind, and the child-process functions that run it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from exporter.child import Emit
from exporter.errors import UsageError
from exporter.runtime.rows import RowFile
from exporter.runtime.sampling import Sampler, SamplingSettings


class Driver(Protocol):
    """A loaded artifact holding the cache of one conversation."""

    context: int
    chunk: int
    vocab_size: int

    def reset(self) -> None:
        """Forgets the conversation."""

    def prefill(self, token_ids: list[int]) -> np.ndarray:
        """Appends tokens and returns the logits after each: float32 [n, V]."""

    def prompt(self, token_ids: list[int]) -> np.ndarray:
        """Appends tokens and returns the logits after the last: float32 [V]."""

    def decode(self, token_id: int) -> np.ndarray:
        """Appends one token and returns the logits after it: float32 [V], which the next call may overwrite."""

    def kv_bytes(self) -> int:
        """Bytes of cache that are really allocated for a full context."""


def open_driver(function: str, folder: Path) -> Driver:
    """Calls a target's `module:function`."""
    module, name = function.split(":")
    driver: Driver = getattr(importlib.import_module(module), name)(folder)
    return driver


def score_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Teacher-forced logits: for each window, the first tokens by prefill, the rest by decode.

    Arguments: driver, folder, windows [[token ids, prefill count]], output (an .npy file [all tokens, V]).
    """
    driver = open_driver(arguments["driver"], Path(arguments["folder"]))
    with RowFile(Path(arguments["output"])) as logits:
        for done, (window, prefill_count) in enumerate(arguments["windows"]):
            driver.reset()
            if prefill_count:
                logits.append(driver.prefill(window[:prefill_count]))
            for token_id in window[prefill_count:]:
                logits.append(driver.decode(token_id)[None])
            emit({"progress": (done + 1) / len(arguments["windows"])})
    return {"kv_bytes": driver.kv_bytes()}


def generate_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Streams sampled tokens as events {"token": id}.

    Arguments: driver, folder, token_ids, end_ids, limit, sampling.
    """
    driver = open_driver(arguments["driver"], Path(arguments["folder"]))
    token_ids, limit = arguments["token_ids"], arguments["limit"]
    if len(token_ids) >= driver.context:
        raise UsageError(f"the prompt has {len(token_ids)} tokens, the cache {driver.context}", "shorten the prompt")
    sampler = Sampler(SamplingSettings(**arguments["sampling"]))
    logits = driver.prompt(token_ids)
    produced = 0
    while produced < limit:
        token_id = sampler.pick(logits)
        if token_id in arguments["end_ids"]:
            return {"stopped": "end", "tokens": produced}
        emit({"token": token_id})
        produced += 1
        if produced == limit or len(token_ids) + produced >= driver.context:
            break
        logits = driver.decode(token_id)
    return {"stopped": "length", "tokens": produced}
