"""TorchOps: the eager interpreter and the oracle. It executes exactly the quantized semantics: the same codes and scales, the
same KV codec with really packed storage, the same ring. Artifact against oracle is parity; oracle against the full-precision
checkpoint is quality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from exporter.decoder.cache import LayerCache
from exporter.decoder.rotary import cosine_sine
from exporter.decoder.spec import Activation, AttentionSpec, DecoderSpec, NormSpec, RotarySpec
from exporter.decoder.weights import WeightStore
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.kv_codec import ChannelConstants, EncodedRows, KvCodec, LayerKvConstants

FLOAT_KV = KvFormat(32, KvScaling.NONE)


@dataclass(frozen=True)
class Hooks:
    """What calibration listens to. `linear_input` gets the matrix name and its input [S, in]; `attention` gets the layer, query
    [S, H, Hd], key and value [S, K, Hd] before they are cached."""

    linear_input: Callable[[str, torch.Tensor], None] | None = None
    attention: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None


def normalize(value: torch.Tensor, gain: torch.Tensor, norm: NormSpec) -> torch.Tensor:
    """Root-mean-square normalization over the last axis."""
    return value * torch.rsqrt(value.square().mean(-1, keepdim=True) + norm.eps) * gain


def rotate(value: torch.Tensor, rotary: RotarySpec, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotates the leading channels of [..., Hd] by tables that broadcast to [..., dimensions / 2]."""
    rotated, passed = value[..., : rotary.dimensions], value[..., rotary.dimensions :]
    first, second = rotated.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine, passed), dim=-1)


def activate(value: torch.Tensor, kind: Activation) -> torch.Tensor:
    """The feed-forward non-linearity."""
    if kind is Activation.SILU:
        return torch.nn.functional.silu(value)
    if kind is Activation.RELU:
        return torch.relu(value)
    return torch.nn.functional.gelu(value, approximate="tanh" if kind is Activation.GELU_TANH else "none")


class TorchLayerCache:
    """Stored keys and values of one layer: `slots` rows of encoded vectors."""

    def __init__(self, layout: LayerCache, key: KvCodec, value: KvCodec) -> None:
        self.layout, self.key, self.value = layout, key, value
        self._keys: EncodedRows | None = None
        self._values: EncodedRows | None = None
        self.length = 0

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Encodes and stores float32 [S, K, Hd] at the next S positions."""
        positions = np.arange(self.length, self.length + keys.shape[0])
        slots = torch.from_numpy(self.layout.slot_of(positions))
        self._keys = _store(self._keys, self.key.encode(keys), slots, self.layout.slots)
        self._values = _store(self._values, self.value.encode(values), slots, self.layout.slots)
        self.length += keys.shape[0]

    def read(self) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Decoded (prepared) keys and values float32 [used, K, Hd] and the positions int64 [used] they belong to."""
        assert self._keys is not None and self._values is not None
        used = min(self.length, self.layout.slots)
        held = self.layout.held_positions(self.length)[:used]
        return self.key.decode(_first(self._keys, used)), self.value.decode(_first(self._values, used)), held

    def stored_bytes(self) -> int:
        """Bytes that the cache really allocates."""
        parts = [part for rows in (self._keys, self._values) if rows for part in (rows.codes, rows.scale, rows.zero)]
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


class TorchOps:
    """Interprets the decoder eagerly in float32. Tensors are torch tensors without a batch axis."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: WeightStore,
        layout: tuple[LayerCache, ...],
        kv_format: KvFormat = FLOAT_KV,
        kv_constants: tuple[LayerKvConstants, ...] | None = None,
        hooks: Hooks = Hooks(),
    ) -> None:
        self.spec, self.weights, self.layout = spec, weights, layout
        self.kv_format, self.kv_constants = kv_format, kv_constants
        self.hooks = hooks
        self._chunk_start, self._chunk_length = 0, 0
        self.caches: list[TorchLayerCache] = []
        self.reset()

    def reset(self) -> None:
        """Forgets every cached token."""
        self.caches = []
        for index, layer in enumerate(self.spec.layers):
            identity = ChannelConstants.identity(layer.attention.kv_heads, layer.attention.head_dim)
            constants = self.kv_constants[index] if self.kv_constants else LayerKvConstants(identity, identity)
            key, value = KvCodec(self.kv_format, constants.key), KvCodec(self.kv_format, constants.value)
            self.caches.append(TorchLayerCache(self.layout[index], key, value))

    def begin_chunk(self, start: int, length: int) -> None:
        """States the absolute position of the chunk that the next calls decode."""
        self._chunk_start, self._chunk_length = start, length

    def embedding(self, token_ids: torch.Tensor, table: str) -> torch.Tensor:
        self.begin_chunk(self.caches[0].length, token_ids.shape[0])
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
        positions = torch.arange(self._chunk_start, self._chunk_start + self._chunk_length)
        cosine, sine = (table[:, None, :] for table in cosine_sine(rotary, positions))
        return rotate(value, rotary, cosine, sine)

    def attention(
        self, layer: int, attention: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        if self.hooks.attention is not None:
            self.hooks.attention(layer, query, key, value)
        cache = self.caches[layer]
        start = cache.length
        cache.append(key, value)
        keys, values, held = cache.read()
        grouped = cache.key.prepare_query(query.unflatten(1, (attention.kv_heads, attention.group)))
        scores = torch.einsum("skrd,ckd->krsc", grouped, keys) * attention.score_scale
        visible = torch.from_numpy(cache.layout.visible(np.arange(start, start + query.shape[0]), held))
        probabilities = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        mixed = cache.value.restore(torch.einsum("krsc,ckd->skrd", probabilities, values))
        return mixed.flatten(1)

    def activation(self, value: torch.Tensor, kind: Activation) -> torch.Tensor:
        return activate(value, kind)

    def multiply(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left * right

    def add(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + right

    def logits(self, value: torch.Tensor, table: str) -> torch.Tensor:
        if self.hooks.linear_input is not None:
            self.hooks.linear_input(table, value)
        return torch.nn.functional.linear(value, self.weights.dense(table))


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
