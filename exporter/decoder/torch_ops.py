"""TorchOps: the eager interpreter and the oracle. It executes exactly the quantized semantics: the same codes and scales, the
same KV codec with really packed storage, the same ring. Artifact against oracle is parity; oracle against the full-precision
checkpoint is quality.
"""

from __future__ import annotations

import numpy as np
import torch

from exporter.decoder.cache import LayerCache
from exporter.decoder.eager_ops import EagerOps, capped, rotate, softmax_beside
from exporter.decoder.rotary import cosine_sine
from exporter.decoder.scan import dual_steps
from exporter.decoder.spec import AttentionSpec, DecoderSpec, RotarySpec
from exporter.decoder.weight_names import sinks_name
from exporter.decoder.weights import WeightStore
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.kv_codec import ChannelConstants, EncodedRows, KvCodec, LayerKvConstants

FLOAT_KV = KvFormat(32, KvScaling.NONE)


class TorchLayerCache:
    """Stored keys and values of one layer: `slots` rows of encoded vectors. Without a codec for values, keys are values."""

    def __init__(self, layout: LayerCache, key: KvCodec, value: KvCodec | None) -> None:
        self.layout, self.key, self.value = layout, key, value
        self._keys: EncodedRows | None = None
        self._values: EncodedRows | None = None
        self.length = 0

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Encodes and stores float32 [S, K, Hd] at the next S positions."""
        positions = np.arange(self.length, self.length + keys.shape[0])
        slots = torch.from_numpy(self.layout.slot_of(positions))
        self._keys = _store(self._keys, self.key.encode(keys), slots, self.layout.slots)
        if self.value is not None:
            self._values = _store(self._values, self.value.encode(values), slots, self.layout.slots)
        self.length += keys.shape[0]

    def read(self) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Decoded (prepared) keys and values float32 [used, K, Hd] and the positions int64 [used] they belong to."""
        assert self._keys is not None
        used = min(self.length, self.layout.slots)
        held = self.layout.held_positions(self.length)[:used]
        keys = self.key.decode(_first(self._keys, used))
        if self.value is None or self._values is None:
            return keys, keys, held
        return keys, self.value.decode(_first(self._values, used)), held

    def restore(self, mixed: torch.Tensor) -> torch.Tensor:
        """Sums of prepared values [..., K, G, Hd] as sums of the values themselves."""
        return (self.value or self.key).restore(mixed)

    def stored(self) -> dict[str, np.ndarray]:
        """Whatever is held, float32 by name: `keys` and `values` [slots, K, n]; where the codec has them also `keys.scale`, `keys.zero`
        and their like [slots, K, 1]."""
        sides = {"keys": self._keys, "values": self._values}
        parts = {
            name: part
            for side, rows in sides.items()
            if rows is not None
            for name, part in ((side, rows.codes), (f"{side}.scale", rows.scale), (f"{side}.zero", rows.zero))
            if part is not None
        }
        return {name: (part if part.dim() == 3 else part[..., None]).float().numpy() for name, part in parts.items()}

    def stored_bytes(self) -> int:
        """Bytes that the cache really allocates."""
        parts = [part for rows in (self._keys, self._values) if rows for part in (rows.codes, rows.scale, rows.zero)]
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


class TorchOps(EagerOps):
    """Interprets the decoder chunk by chunk, through the cache, and recurrences token by token."""

    dual = staticmethod(dual_steps)

    def __init__(
        self,
        spec: DecoderSpec,
        weights: WeightStore,
        layout: tuple[LayerCache, ...],
        kv_format: KvFormat = FLOAT_KV,
        kv_constants: tuple[LayerKvConstants, ...] | None = None,
    ) -> None:
        super().__init__(weights)
        self.spec, self.layout = spec, layout
        self.kv_format, self.kv_constants = kv_format, kv_constants
        self._chunk = (0, 0)
        self.caches: dict[int, TorchLayerCache] = {}
        self.states: dict[tuple[int, str], torch.Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Forgets every token."""
        self._chunk = (0, 0)
        self.caches, self.states = {}, {}
        for index, layer in enumerate(self.spec.layers):
            if layer.attention is None:
                continue
            identity = ChannelConstants.identity(layer.attention.kv_heads, layer.attention.head_dim)
            constants = self.kv_constants[index] if self.kv_constants else LayerKvConstants(identity, identity)
            key, value = KvCodec(self.kv_format, constants.key), KvCodec(self.kv_format, constants.value)
            self.caches[index] = TorchLayerCache(self.layout[index], key, None if layer.attention.latent else value)

    def stored_cache(self) -> dict[str, np.ndarray]:
        """`TorchLayerCache.stored` of every layer, and its states in the shapes of `StateSpec`: as `layers.I.NAME`."""
        parts = {
            f"layers.{index}.{name}": part
            for index, cache in self.caches.items()
            for name, part in cache.stored().items()
        }
        return parts | {f"layers.{index}.{name}": state[0].numpy() for (index, name), state in self.states.items()}

    def embedding(self, token_ids: torch.Tensor, table: str) -> torch.Tensor:
        self._chunk = (sum(self._chunk), token_ids.shape[0])
        return super().embedding(token_ids, table)

    def take_state(self, layer: int, name: str, shape: tuple[int, ...], count: int) -> torch.Tensor:
        held = self.states.get((layer, name))
        return super().take_state(layer, name, shape, count) if held is None else held

    def keep_state(self, layer: int, name: str, state: torch.Tensor) -> None:
        self.states[layer, name] = state

    def positions(self, table: str) -> torch.Tensor:
        start, length = self._chunk
        return self.weights.dense(table)[start : start + length]

    def rotary(self, value: torch.Tensor, rotary: RotarySpec) -> torch.Tensor:
        start, length = self._chunk
        positions = torch.arange(start, start + length)
        cosine, sine = (table[:, None, :] for table in cosine_sine(rotary, positions))
        return rotate(value, rotary, cosine, sine)

    def attention(
        self, layer: int, attention: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        cache = self.caches[layer]
        start = cache.length
        cache.append(key, value)
        keys, values, held = cache.read()
        grouped = cache.key.prepare_query(query.unflatten(1, (attention.kv_heads, attention.group)))
        scores = capped(torch.einsum("skrd,ckd->krsc", grouped, keys) * attention.score_scale, attention.score_cap)
        positions = np.arange(start, start + query.shape[0])
        if attention.distance_slopes is not None:
            slopes = torch.tensor(attention.distance_slopes).view(attention.kv_heads, attention.group, 1, 1)
            scores = scores + slopes * torch.from_numpy(held[None, :] - positions[:, None])
        visible = torch.from_numpy(cache.layout.visible(positions, held))
        learned = self.weights.dense(sinks_name(layer)) if attention.learned_sinks else None
        sinks = None if learned is None else learned.view(attention.kv_heads, attention.group, 1, 1)
        probabilities = softmax_beside(scores.masked_fill(~visible, -torch.inf), sinks)
        mixed = cache.restore(torch.einsum("krsc,ckd->skrd", probabilities, values))
        return mixed.flatten(1)


def _store(rows: EncodedRows | None, new: EncodedRows, slots: torch.Tensor, count: int) -> EncodedRows:
    """Writes new rows at their slots, allocating the whole cache on first use."""

    def allocate(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else torch.zeros((count, *part.shape[1:]), dtype=part.dtype)

    if rows is None:
        rows = EncodedRows(torch.zeros((count, *new.codes.shape[1:]), dtype=new.codes.dtype))
        rows.scale, rows.zero = allocate(new.scale), allocate(new.zero)
    rows.codes[slots] = new.codes
    if rows.scale is not None and new.scale is not None:
        rows.scale[slots] = new.scale
    if rows.zero is not None and new.zero is not None:
        rows.zero[slots] = new.zero
    return rows


def _first(rows: EncodedRows, count: int) -> EncodedRows:
    def cut(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else part[:count]

    return EncodedRows(rows.codes[:count], cut(rows.scale), cut(rows.zero))
