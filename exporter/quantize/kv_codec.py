"""KV-cache codecs: how a key or value vector becomes packed codes and back.

Before rounding, keys and values pass through calibrated per-channel constants that are exact in full precision:

* centring: softmax ignores `q . m`, the same for every cached key, so `m` may be subtracted from every key; attention weights
  sum to one, so a centre subtracted from every value is added back once to the output;
* balancing: (q * b) . (k / b) = q . k for positive per-channel `b`.

An orthonormal Hadamard rotation of queries, keys and values is exact for the same reason (QuaRot, arXiv 2404.00456).

Two ways to scale the codes: one fp16 scale (and optional zero point) per token and head, found when the token is cached; or one
static scale and zero point per layer, which is all that HTP tensors can hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from exporter.quantize.formats import CODES_PER_LANE, KvFormat, KvScaling
from exporter.quantize.int4 import pack_nibbles, unpack_nibbles


@dataclass(frozen=True)
class ChannelConstants:
    """Calibrated constants of the keys or of the values of one layer.

    center, balance   float32 [K, Hd]
    scale, zero       static scaling only: value' = (code - zero) * scale, code in [0, 2 ** bits)
    """

    center: torch.Tensor
    balance: torch.Tensor
    scale: float = 1.0
    zero: int = 0

    @staticmethod
    def identity(kv_heads: int, head_dim: int) -> ChannelConstants:
        return ChannelConstants(torch.zeros(kv_heads, head_dim), torch.ones(kv_heads, head_dim))


@dataclass(frozen=True)
class LayerKvConstants:
    """Constants of one layer's cache."""

    key: ChannelConstants
    value: ChannelConstants


@dataclass
class EncodedRows:
    """What is stored: codes uint8 [S, K, bytes] (or fp16 lanes, or floats [S, K, Hd]) and, per token and head, scale and zero [S, K]."""

    codes: torch.Tensor
    scale: torch.Tensor | None = None
    zero: torch.Tensor | None = None


class KvCodec:
    """Encodes and decodes the keys, or the values, of one layer."""

    def __init__(self, kv_format: KvFormat, constants: ChannelConstants) -> None:
        self.format = kv_format
        self.constants = constants
        self.head_dim = constants.center.shape[-1]
        self._hadamard = hadamard(self.head_dim) if kv_format.rotation else None

    def prepare(self, rows: torch.Tensor) -> torch.Tensor:
        """Full-precision preprocessing of [S, K, Hd]: centre, balance, rotate."""
        prepared = (rows - self.constants.center) / self.constants.balance
        return prepared if self._hadamard is None else prepared @ self._hadamard

    def prepare_query(self, query: torch.Tensor) -> torch.Tensor:
        """The counterpart for queries [S, K, R, Hd] that meet prepared keys."""
        prepared = query * self.constants.balance[None, :, None, :]
        return prepared if self._hadamard is None else prepared @ self._hadamard

    def restore(self, mixed: torch.Tensor) -> torch.Tensor:
        """Undoes preprocessing on a weighted mean of prepared values [S, K, R, Hd]."""
        restored = mixed if self._hadamard is None else mixed @ self._hadamard.T
        return restored * self.constants.balance[None, :, None, :] + self.constants.center[None, :, None, :]

    def encode(self, rows: torch.Tensor) -> EncodedRows:
        """float32 [S, K, Hd] -> what the cache stores."""
        prepared = self.prepare(rows)
        if self.format.scaling is KvScaling.NONE:
            return EncodedRows(prepared.half() if self.format.bits == 16 else prepared)
        if self.format.scaling is KvScaling.STATIC:
            codes = torch.round(prepared / self.constants.scale) + self.constants.zero
            return EncodedRows(self._pack(codes.clamp_(0, 2**self.format.bits - 1)))
        return self._encode_per_token(prepared)

    def decode(self, stored: EncodedRows) -> torch.Tensor:
        """Prepared (not restored) vectors: float32 [S, K, Hd]."""
        if self.format.scaling is KvScaling.NONE:
            return stored.codes.float()
        codes = self._unpack(stored.codes)
        if self.format.scaling is KvScaling.STATIC:
            return (codes - self.constants.zero) * self.constants.scale
        assert stored.scale is not None
        decoded = codes * stored.scale.float()[..., None]
        return decoded if stored.zero is None else decoded + stored.zero.float()[..., None]

    def _encode_per_token(self, prepared: torch.Tensor) -> EncodedRows:
        levels = 2**self.format.bits
        if self.format.zero_point:
            low, high = prepared.amin(-1), prepared.amax(-1)
            scale = self._stored(((high - low) / (levels - 1)).clamp_min(2.0**-24))
            zero = self._stored(low)
            codes = torch.round((prepared - zero.float()[..., None]) / scale.float()[..., None])
            return EncodedRows(self._pack(codes.clamp_(0, levels - 1)), scale, zero)
        if self.format.positive_scales:
            scale = self._stored(prepared.abs().amax(-1) / (levels // 2 - 1))
        else:
            scale = self._stored(_signed_peak(prepared) / -(levels // 2))
        scale = torch.where(scale == 0, torch.full_like(scale, 2.0**-24), scale)
        codes = torch.round(prepared / scale.float()[..., None]).clamp_(-(levels // 2), levels // 2 - 1)
        return EncodedRows(self._pack(codes + levels // 2), scale)

    def _stored(self, numbers: torch.Tensor) -> torch.Tensor:
        """Scales and zero points as the cache holds them."""
        return numbers if self.format.float_scales else numbers.half()

    def _pack(self, codes: torch.Tensor) -> torch.Tensor:
        if self.format.half_lanes:
            return pack_lanes(codes)
        integer = codes.to(torch.uint8)
        return pack_nibbles(integer.view(torch.int8)) if self.format.bits == 4 else integer

    def _unpack(self, stored: torch.Tensor) -> torch.Tensor:
        if self.format.half_lanes:
            codes = unpack_lanes(stored, self.head_dim)
        elif self.format.bits == 4:
            codes = (unpack_nibbles(stored, self.head_dim) & 0xF).float()
        else:
            codes = stored.float()
        symmetric = self.format.scaling is KvScaling.PER_TOKEN and not self.format.zero_point
        return codes - 2 ** (self.format.bits - 1) if symmetric else codes


def pack_lanes(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0..15 float [..., n] -> float16 [..., ceil(n / 3)]: lane i holds the codes i, i + lanes and i + 2 * lanes as
    256 * (first - 8) + 16 * second + third, an integer in [-2048, 2047]. Missing codes count as 8, the middle."""
    lanes = -(-codes.shape[-1] // CODES_PER_LANE)
    padded = torch.nn.functional.pad(codes, (0, CODES_PER_LANE * lanes - codes.shape[-1]), value=8.0)
    first, second, third = padded.split(lanes, dim=-1)
    return (256 * (first - 8) + 16 * second + third).half()


def unpack_lanes(stored: torch.Tensor, count: int) -> torch.Tensor:
    """Inverse of `pack_lanes`: float16 [..., ceil(count / 3)] -> codes 0..15, float32 [..., count]."""
    lanes = stored.float()
    first = torch.floor(lanes / 256)
    rest = lanes - 256 * first
    second = torch.floor(rest / 16)
    return torch.cat((first + 8, second, rest - 16 * second), dim=-1)[..., :count]


def _signed_peak(rows: torch.Tensor) -> torch.Tensor:
    """The element of largest magnitude, with its sign: [..., n] -> [...]. It gets code -2^(bits-1), the widest one."""
    index = rows.abs().argmax(-1, keepdim=True)
    return rows.gather(-1, index)[..., 0]


def hadamard(size: int) -> torch.Tensor:
    """Orthonormal Hadamard matrix [size, size]; `size` must be a power of two (Sylvester's construction)."""
    if size & (size - 1):
        raise ValueError(f"a Hadamard rotation needs a power of two, not {size}")
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)), 0)
    return matrix / math.sqrt(size)
