"""SequenceOps: interprets the decoder on several whole sequences at once, without a cache. For calibration and full-precision
perplexity, where every sequence is known in advance: linear layers see all rows together, attention sees each sequence alone.

Tensors are [N * S, ...]: N sequences of S tokens, one after another. It agrees with TorchOps on a float cache.
"""

from __future__ import annotations

import torch

from exporter.decoder.rotary import cosine_sine
from exporter.decoder.spec import Activation, AttentionSpec, NormSpec, RotarySpec
from exporter.decoder.torch_ops import Hooks, activate, normalize, rotate
from exporter.decoder.weights import WeightStore


class SequenceOps:
    """Eager interpreter for sequences of `length` tokens each."""

    def __init__(self, weights: WeightStore, length: int, hooks: Hooks = Hooks()) -> None:
        self.weights, self.length, self.hooks = weights, length, hooks
        self._masks: dict[int | None, torch.Tensor] = {}

    def embedding(self, token_ids: torch.Tensor, table: str) -> torch.Tensor:
        return self.weights.rows(table, token_ids)

    def linear(self, value: torch.Tensor, matrix: str, bias: bool) -> torch.Tensor:
        if self.hooks.linear_input is not None:
            self.hooks.linear_input(matrix, value)
        offset = self.weights.dense(f"{matrix}.bias") if bias else None
        return torch.nn.functional.linear(value, self.weights.dense(matrix), offset)

    def rms_norm(self, value: torch.Tensor, gain: str, norm: NormSpec) -> torch.Tensor:
        return normalize(value, self.weights.dense(gain), norm)

    def split_heads(self, value: torch.Tensor, heads: int) -> torch.Tensor:
        return value.unflatten(-1, (heads, -1))

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

    def activation(self, value: torch.Tensor, kind: Activation) -> torch.Tensor:
        return activate(value, kind)

    def multiply(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left * right

    def add(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + right

    def logits(self, value: torch.Tensor, table: str) -> torch.Tensor:
        return torch.nn.functional.linear(value, self.weights.dense(table))

    def _mask(self, window: int | None) -> torch.Tensor:
        """bool [S, S]: causal, within the window."""
        if window not in self._masks:
            positions = torch.arange(self.length)
            behind = positions[:, None] - positions[None, :]
            self._masks[window] = (behind >= 0) & (behind < (window or self.length))
        return self._masks[window]
