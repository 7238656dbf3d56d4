"""Keys and values in buffers that both methods of a program share, and attention over them in plain operators.

The plain operators are those of the oracle's own codec, traced: they run wherever ExecuTorch runs, and they read and unpack every
slot of a cache for every chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from exporter.decoder.cache import EMPTY, LayerCache
from exporter.decoder.eager_ops import capped, softmax_beside
from exporter.decoder.spec import AttentionSpec
from exporter.quantize.kv_codec import EncodedRows, KvCodec
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.xnnpack.names import KEYS, VALUES


class Chunk:
    """Where the S tokens of one call stand: absolute positions int64 [S]."""

    def __init__(self, position: torch.Tensor, length: int) -> None:
        self.start = position
        self.positions = position + torch.arange(length)
        self._masks: dict[LayerCache, torch.Tensor] = {}
        self._held: dict[LayerCache, torch.Tensor] = {}

    def slots(self, ring: LayerCache) -> torch.Tensor:
        """Slot of each token: int64 [S]."""
        ringed = (self.positions - ring.sinks) % ring.ring + ring.sinks
        return torch.where(self.positions < ring.sinks, self.positions, ringed) if ring.sinks else ringed

    def held(self, ring: LayerCache) -> torch.Tensor:
        """Position that each slot holds once the chunk is written: int64 [C], EMPTY where none."""
        if ring not in self._held:
            slots, last = torch.arange(ring.slots), self.positions[-1:]
            ringed = last - (last - slots) % ring.ring
            held = torch.where(slots < ring.sinks, slots, ringed) if ring.sinks else ringed
            first = torch.where(slots < ring.sinks, 0, ring.sinks)
            self._held[ring] = torch.where((held >= first) & (held <= last), held, EMPTY)
        return self._held[ring]

    def mask(self, ring: LayerCache) -> torch.Tensor:
        """float32 [S, 1, C]: 0 where a token may read a slot, else minus infinity."""
        if ring not in self._masks:
            held, query = self.held(ring)[None, :], self.positions[:, None]
            seen = (held != EMPTY) & (held <= query)
            if ring.window is not None:
                seen = seen & ((held > query - ring.window) | (held < ring.sinks))
            self._masks[ring] = torch.where(seen, 0.0, -torch.inf)[:, None, :]
        return self._masks[ring]


class TracedKvCodec(KvCodec):
    """The oracle's codec without reinterpreting bytes, which has no operator at run time."""

    def _pack(self, codes: torch.Tensor) -> torch.Tensor:
        integer = codes.to(torch.uint8)
        if self.format.bits == 8:
            return integer
        pairs = integer.unflatten(-1, (-1, 2))
        return pairs[..., 0] | (torch.bitwise_left_shift(pairs[..., 1], 4))

    def _unpack(self, stored: torch.Tensor) -> torch.Tensor:
        if self.format.bits == 4:
            stored = torch.stack((stored & 0xF, torch.bitwise_right_shift(stored, 4)), dim=-1).flatten(-2)
        codes = stored.float()
        return codes if self.format.zero_point else codes - 2 ** (self.format.bits - 1)


@dataclass(frozen=True)
class LayerCodecs:
    """How one layer stores keys and values."""

    key: TracedKvCodec
    value: TracedKvCodec


class LayerState(nn.Module):
    """Buffers of one layer, in the codec's own form: codes [C, K, bytes] or floats [C, K, Hd], scales and zero points [C, K]."""

    def __init__(self, ring: LayerCache, codecs: LayerCodecs, example: torch.Tensor) -> None:
        super().__init__()
        for side, codec in ((KEYS, codecs.key), (VALUES, codecs.value)):
            rows = codec.encode(example)
            for part, values in (("codes", rows.codes), ("scales", rows.scale), ("zeros", rows.zero)):
                if values is not None:
                    self.register_buffer(
                        f"{side}_{part}", torch.zeros((ring.slots, *values.shape[1:]), dtype=values.dtype)
                    )

    def store(self, side: str, rows: EncodedRows, slots: torch.Tensor) -> EncodedRows:
        """Writes new rows and returns the whole cache."""
        for part, values in (("codes", rows.codes), ("scales", rows.scale), ("zeros", rows.zero)):
            if values is not None:
                self.part(side, part).index_put_((slots,), values)
        scaled, shifted = rows.scale is not None, rows.zero is not None
        return EncodedRows(
            self.part(side, "codes"),
            self.part(side, "scales") if scaled else None,
            self.part(side, "zeros") if shifted else None,
        )

    def part(self, side: str, part: str) -> torch.Tensor:
        found: torch.Tensor = getattr(self, f"{side}_{part}")
        return found


class KvState(nn.Module):
    """The caches of all layers that attend."""

    def __init__(self, decoder: QuantizedDecoder) -> None:
        super().__init__()
        self.rings, self.specs = decoder.layout, [layer.attention for layer in decoder.spec.layers]
        self.codecs = [
            LayerCodecs(TracedKvCodec(decoder.kv_format, entry.key), TracedKvCodec(decoder.kv_format, entry.value))
            for entry in decoder.kv_constants
        ]
        self.layers = nn.ModuleList(
            LayerState(ring, codecs, torch.zeros(1, attention.kv_heads, attention.head_dim))
            if attention
            else nn.Module()
            for ring, codecs, attention in zip(self.rings, self.codecs, self.specs, strict=True)
        )

    def attend(
        self,
        layer: int,
        chunk: Chunk,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        learned: torch.Tensor,
    ) -> torch.Tensor:
        """Queries [S, H, Hd], keys and values [S, K, Hd], learned sinks [H] or [0] -> [S, H * Hd]."""
        attention, codecs, ring = self.specs[layer], self.codecs[layer], self.rings[layer]
        state, slots = self.layers[layer], chunk.slots(ring)
        assert isinstance(state, LayerState) and attention is not None
        keys = codecs.key.decode(state.store(KEYS, codecs.key.encode(key), slots))
        values = codecs.value.decode(state.store(VALUES, codecs.value.encode(value), slots))
        grouped = codecs.key.prepare_query(query.unflatten(1, (attention.kv_heads, attention.group)))
        by_head = grouped.permute(1, 0, 2, 3).flatten(1, 2)
        scores = by_head @ keys.permute(1, 2, 0) * attention.score_scale
        scores = capped(scores, attention.score_cap).unflatten(1, (-1, attention.group))
        masked = scores + self._distances(attention, chunk, ring) + chunk.mask(ring)
        sinks = learned.view(attention.kv_heads, 1, attention.group, 1) if attention.learned_sinks else None
        mixed = softmax_beside(masked, sinks).flatten(1, 2) @ values.permute(1, 0, 2)
        by_token = mixed.unflatten(1, (-1, attention.group)).permute(1, 0, 2, 3)
        return codecs.value.restore(by_token).flatten(1)

    def _distances(self, attention: AttentionSpec, chunk: Chunk, ring: LayerCache) -> torch.Tensor | float:
        """What distance takes from the scores: [K, S, G, C]."""
        if attention.distance_slopes is None:
            return 0.0
        slopes = torch.tensor(attention.distance_slopes).view(attention.kv_heads, 1, attention.group, 1)
        behind = chunk.held(ring)[None, :] - chunk.positions[:, None]
        return slopes * behind[:, None, :]
