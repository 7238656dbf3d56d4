"""SequenceOps: interprets the decoder on several whole sequences at once, without a cache. For calibration and full-precision
perplexity, where every sequence is known in advance: linear layers see all rows together, attention sees each sequence alone.

Tensors are [N * S, ...]: N sequences of S tokens, one after another. It agrees with TorchOps on a float cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from exporter.decoder.eager_ops import EagerOps, rotate
from exporter.decoder.rotary import cosine_sine
from exporter.decoder.spec import AttentionSpec, RotarySpec
from exporter.decoder.weights import WeightStore

ObserveAttention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Gets the layer, query [N * S, H, Hd], key and value [N * S, K, Hd]."""


@dataclass(frozen=True)
class Hooks:
    """What calibration listens to. `linear_input` gets the matrix name and its input [N * S, in], before the product."""

    linear_input: Callable[[str, torch.Tensor], None] | None = None
    attention: ObserveAttention | None = None


class SequenceOps(EagerOps):
    """Eager interpreter for sequences of `length` tokens each."""

    def __init__(self, weights: WeightStore, length: int, hooks: Hooks = Hooks()) -> None:
        super().__init__(weights)
        self.length, self.hooks = length, hooks
        self._masks: dict[int | None, torch.Tensor] = {}

    def linear(self, value: torch.Tensor, matrix: str, bias: bool) -> torch.Tensor:
        if self.hooks.linear_input is not None:
            self.hooks.linear_input(matrix, value)
        return super().linear(value, matrix, bias)

    def rotary(self, value: torch.Tensor, rotary: RotarySpec) -> torch.Tensor:
        tables = cosine_sine(rotary, torch.arange(self.length))
        cosine, sine = (table[None, :, None, :] for table in tables)
        return rotate(value.unflatten(0, (-1, self.length)), rotary, cosine, sine).flatten(0, 1)

    def attention(
        self, layer: int, attention: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        if self.hooks.attention is not None:
            self.hooks.attention(layer, query, key, value)
        query, key, value = (part.unflatten(0, (-1, self.length)).transpose(1, 2) for part in (query, key, value))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._mask(attention.window), scale=attention.score_scale, enable_gqa=True
        )
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1)

    def _mask(self, window: int | None) -> torch.Tensor:
        """bool [S, S]: causal, within the window."""
        if window not in self._masks:
            positions = torch.arange(self.length)
            behind = positions[:, None] - positions[None, :]
            self._masks[window] = (behind >= 0) & (behind < (window or self.length))
        return self._masks[window]
