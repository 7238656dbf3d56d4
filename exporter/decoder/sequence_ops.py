"""SequenceOps: interprets the decoder on several whole sequences at once, without a cache. For calibration and full-precision
perplexity, where every sequence is known in advance: linear layers see all rows together, attention sees each sequence alone.

Tensors are [N * S, ...]: N sequences of S tokens, one after another. It agrees with TorchOps on a float cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from exporter.decoder.eager_ops import EagerOps, capped, rotate, softmax_beside
from exporter.decoder.rotary import cosine_sine
from exporter.decoder.spec import AttentionSpec, ExpertsSpec, RotarySpec
from exporter.decoder.weight_names import sinks_name
from exporter.decoder.weights import WeightStore

ObserveAttention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Gets the layer, query [N * S, H, Hd], key and value [N * S, K, Hd]."""


ObserveExperts = Callable[[str, ExpertsSpec, torch.Tensor, torch.Tensor], None]
"""Gets the name of the block, its spec, what it reads [N * S, D], and the chosen experts int64 [N * S, k]."""


@dataclass(frozen=True)
class Hooks:
    """What calibration listens to. `linear_input` gets the matrix name and its input [N * S, in], before the product; `experts` is
    called between routing and the products of the experts."""

    linear_input: Callable[[str, torch.Tensor], None] | None = None
    attention: ObserveAttention | None = None
    experts: ObserveExperts | None = None


class SequenceOps(EagerOps):
    """Eager interpreter for sequences of `length` tokens each."""

    def __init__(self, weights: WeightStore, length: int, hooks: Hooks = Hooks()) -> None:
        super().__init__(weights)
        self.length, self.hooks = length, hooks
        self._masks: dict[int | None, torch.Tensor] = {}
        self._sequences = 0

    def embedding(self, token_ids: torch.Tensor, table: str) -> torch.Tensor:
        self._sequences = token_ids.shape[0] // self.length
        return super().embedding(token_ids, table)

    def positions(self, table: str) -> torch.Tensor:
        return self.weights.dense(table)[: self.length].repeat(self._sequences, 1)

    def sequences(self, value: torch.Tensor) -> torch.Tensor:
        return value.unflatten(0, (-1, self.length))

    def linear(self, value: torch.Tensor, matrix: str, bias: bool) -> torch.Tensor:
        if self.hooks.linear_input is not None:
            self.hooks.linear_input(matrix, value)
        return super().linear(value, matrix, bias)

    def routed(self, value: torch.Tensor, prefix: str, experts: ExpertsSpec) -> tuple[torch.Tensor, torch.Tensor]:
        chosen, weights = super().routed(value, prefix, experts)
        if self.hooks.experts is not None:
            self.hooks.experts(prefix, experts, value, chosen)
        return chosen, weights

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
        mask = self._mask(attention)
        if attention.score_cap is None and not attention.learned_sinks:
            mixed = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=attention.score_scale, enable_gqa=True
            )
        else:
            sinks = self.weights.dense(sinks_name(layer)) if attention.learned_sinks else None
            mixed = _attention_by_hand(attention, query, key, value, mask, sinks)
        return mixed.transpose(1, 2).flatten(2).flatten(0, 1)

    def _mask(self, attention: AttentionSpec) -> torch.Tensor:
        """bool [S, S]: causal, within the window; float [1 or H, S, S] to be added where scores are more than products."""
        visible = self._visible(attention.window)
        if attention.distance_slopes is None and attention.score_cap is None and not attention.learned_sinks:
            return visible
        positions, slopes = torch.arange(self.length), torch.tensor(attention.distance_slopes or (0.0,))
        distances = slopes[:, None, None] * (positions[None, :] - positions[:, None])
        return distances.masked_fill(~visible, -torch.inf)

    def _visible(self, window: int | None) -> torch.Tensor:
        if window not in self._masks:
            positions = torch.arange(self.length)
            behind = positions[:, None] - positions[None, :]
            self._masks[window] = (behind >= 0) & (behind < (window or self.length))
        return self._masks[window]


def _attention_by_hand(
    attention: AttentionSpec,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Where scores are capped or share their softmax. One sequence at a time: query [N, H, S, Hd], key and value [N, K, S, Hd], mask
    [1 or H, S, S] -> [N, H, S, Hd]."""
    mixed = torch.empty_like(query)
    for index in range(query.shape[0]):
        keys, values = (part[index].repeat_interleave(attention.group, 0) for part in (key, value))
        scores = capped(query[index] @ keys.transpose(1, 2) * attention.score_scale, attention.score_cap)
        mixed[index] = softmax_beside(scores + mask, None if sinks is None else sinks[:, None, None]) @ values
    return mixed
