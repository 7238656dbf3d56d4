"""Keys and values in buffers of the program, a slot for every position of the context, and attention over them.

A layer that sees all that came before goes to the delegate's own attention operator, which reads the slots in use. That operator knows no
window, cap or slope: layers with one read every slot and mask those that they must not see. Masks are built from whole numbers, because
positions beyond 2048 have no exact fp16, and hide by a number that fp16 holds, not by minus infinity.
"""

from __future__ import annotations

import math

import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  defines llama::update_cache and llama::custom_sdpa
import torch
from torch import nn

from exporter.decoder.cache import LayerCache
from exporter.decoder.eager_ops import capped
from exporter.decoder.spec import AttentionSpec
from exporter.quantize.quantized_checkpoint import QuantizedDecoder

HIDDEN = 3e4
"""What is taken from the score of a slot that must not be seen, once or twice: fp16 ends at 65504, and exp(-30000) is 0."""

_OPERATORS = torch.ops.llama


class LayerState(nn.Module):
    """Buffers of one layer: keys and values float32 [1, C, K, Hd]; the delegate makes them fp16 where the recipe says so."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, ring: LayerCache, attention: AttentionSpec) -> None:
        super().__init__()
        shape = (1, ring.slots, attention.kv_heads, attention.head_dim)
        self.register_buffer("keys", torch.zeros(shape))
        self.register_buffer("values", torch.zeros(shape))


class KvState(nn.Module):
    """The caches of all layers."""

    def __init__(self, decoder: QuantizedDecoder) -> None:
        super().__init__()
        self.rings, self.specs = decoder.layout, [layer.heads for layer in decoder.spec.layers]
        self.layers = nn.ModuleList(map(LayerState, self.rings, self.specs))

    def clear(self) -> None:
        """Zeros, so that equal decoders give equal files."""
        for buffer in self.buffers():
            buffer.zero_()


class Chunk:
    """Where the S tokens of one call stand: the first one's position as a number, all of them int64 [S], and the slots int64 [C]."""

    def __init__(self, position: torch.Tensor, order: torch.Tensor, slots: torch.Tensor, length: int) -> None:
        self.start = position[0].item()
        torch._check(self.start >= 0)
        torch._check(self.start + length <= slots.shape[0])
        torch._check(self.start < slots.shape[0])
        self.positions, self.slots = order[:length] + position, slots
        self._behind = self.positions[:, None] - slots[None, :]
        self._masks: dict[LayerCache, torch.Tensor] = {}

    def distances(self) -> torch.Tensor:
        """How far behind a token each slot is, float32 [S, C]."""
        return self._behind.float()

    def mask(self, ring: LayerCache) -> torch.Tensor:
        """float32 [S, C]: 0 where a token may read a slot, else -HIDDEN or twice that."""
        if ring not in self._masks:
            hidden = self._behind.clamp(-1, 0)
            if ring.window is not None:
                outside = (ring.window - 1 - self._behind).clamp(-1, 0)
                hidden = hidden + outside * (self.slots - (ring.sinks - 1)).clamp(0, 1)
            self._masks[ring] = hidden.float() * HIDDEN
        return self._masks[ring]


def attend(
    state: KvState, layer: int, chunk: Chunk, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Queries [S, H, Hd], keys and values [S, K, Hd] -> [S, H * Hd]."""
    attention, held = state.specs[layer], state.layers[layer]
    assert isinstance(held, LayerState)
    _OPERATORS.update_cache(key[None], held.keys, chunk.start)
    _OPERATORS.update_cache(value[None], held.values, chunk.start)
    if sees_everything(attention, state.rings[layer]):
        factor = attention.score_scale * math.sqrt(attention.head_dim)  # the operator has a scale of its own
        scaled = query if math.isclose(factor, 1.0, rel_tol=1e-6) else query * factor
        return _OPERATORS.custom_sdpa(scaled[None], held.keys, held.values, chunk.start, None, 0.0, True)[0].flatten(1)
    return _masked_attention(attention, state.rings[layer], held, chunk, query)


def sees_everything(attention: AttentionSpec, ring: LayerCache) -> bool:
    """Whether the delegate's attention operator says all there is to a layer."""
    return ring.window is None and attention.score_cap is None and attention.distance_slopes is None


def _masked_attention(
    attention: AttentionSpec, ring: LayerCache, held: LayerState, chunk: Chunk, query: torch.Tensor
) -> torch.Tensor:
    """Rows of a key head's queries lie one group after another: [K, G * S, Hd]."""
    grouped = query.unflatten(1, (attention.kv_heads, attention.group)).permute(1, 2, 0, 3).flatten(1, 2)
    scores = torch.bmm(grouped, held.keys[0].permute(1, 2, 0)) * attention.score_scale
    scores = capped(scores, attention.score_cap) + _bias(attention, ring, chunk)
    mixed = torch.bmm(scores.softmax(-1), held.values[0].permute(1, 0, 2))
    return mixed.unflatten(1, (attention.group, -1)).permute(2, 0, 1, 3).flatten(1)


def _bias(attention: AttentionSpec, ring: LayerCache, chunk: Chunk) -> torch.Tensor:
    """What is added to the scores: [1 or K, G * S, C]."""
    mask = chunk.mask(ring)[None]
    if attention.distance_slopes is None:
        return torch.cat([mask] * attention.group, dim=1)
    slopes = torch.tensor(attention.distance_slopes).view(attention.kv_heads, attention.group, 1, 1)
    return torch.cat([mask - slopes[:, each] * chunk.distances() for each in range(attention.group)], dim=1)
