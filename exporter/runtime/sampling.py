"""Choosing the next token from logits: greedy, temperature, top-k, top-p (nucleus, arXiv 1904.09751), seeded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from exporter.errors import UsageError


@dataclass(frozen=True)
class SamplingSettings:
    """Temperature 0 is greedy; `top_k` 0 and `top_p` 1 keep every token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError naming the option that is out of range."""
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"--temperature {self.temperature} is not zero or positive", "use 0 for greedy decoding")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is negative", "use 0 or a positive number")
        if self.top_k < 0:
            raise UsageError(f"--top-k {self.top_k} is negative", "use 0 to keep every token")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p {self.top_p} is outside (0, 1]", "use 1 to keep every token")


class Sampler:
    """Seeded sampler; equal seeds and logits give equal tokens."""

    def __init__(self, settings: SamplingSettings) -> None:
        settings.check()
        self.settings = settings
        self._random = np.random.default_rng(settings.seed)

    def pick(self, logits: np.ndarray) -> int:
        """float32 [V] -> token id."""
        if self.settings.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")
        if self.settings.top_k:
            order = order[: self.settings.top_k]
        scaled = logits[order].astype(np.float64) / self.settings.temperature
        weights = np.exp(scaled - scaled.max())
        weights /= weights.sum()
        kept = int(np.searchsorted(np.cumsum(weights), self.settings.top_p)) + 1
        weights = weights[:kept] / weights[:kept].sum()
        return int(self._random.choice(order[:kept], p=weights))
