"""Constants of the KV codecs, from what the decoder's own attention sees on calibration text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from exporter.decoder.spec import DecoderSpec
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.kv_codec import ChannelConstants, LayerKvConstants

SMALLEST_SPREAD = 1e-4
"""Floor for standard deviations and ranges: a channel that never moves must not blow up the others."""

LARGEST_SPREAD_RATIO = 64.0
"""A channel's range counts as at least this fraction of the layer's widest: the constants themselves are stored in 16 bits."""


SIDES = ("queries", "keys", "values")


@dataclass
class ChannelStatistics:
    """Running sums per channel of one layer's queries, keys or values: all [K, Hd]."""

    count: int
    total: torch.Tensor
    squares: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @staticmethod
    def empty(kv_heads: int, head_dim: int) -> ChannelStatistics:
        zero = torch.zeros(kv_heads, head_dim, dtype=torch.float64)
        return ChannelStatistics(
            0, zero, zero.clone(), torch.full_like(zero, torch.inf), torch.full_like(zero, -torch.inf)
        )

    def add(self, rows: torch.Tensor) -> None:
        """[S, K, Hd]."""
        self.count += rows.shape[0]
        self.total += rows.sum(0)
        self.squares += rows.double().square().sum(0)
        self.low = torch.minimum(self.low, rows.amin(0))
        self.high = torch.maximum(self.high, rows.amax(0))

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.count

    @property
    def deviation(self) -> torch.Tensor:
        return (self.squares / self.count - self.mean.square()).clamp_min(0).sqrt()

    @property
    def root_mean_square(self) -> torch.Tensor:
        return (self.squares / self.count).sqrt()


class KvCalibrator:
    """Listens to attention (see `sequence_ops.Hooks`) and derives every layer's constants."""

    def __init__(self, spec: DecoderSpec) -> None:
        self.spec = spec

        def statistics() -> list[ChannelStatistics]:
            return [ChannelStatistics.empty(*_heads(spec, index)) for index in range(len(spec.layers))]

        self.queries, self.keys, self.values = statistics(), statistics(), statistics()

    def observe(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        attention = self.spec.layers[layer].heads
        self.queries[layer].add(query.unflatten(1, (attention.kv_heads, attention.group)).transpose(1, 2).flatten(0, 1))
        self.keys[layer].add(key)
        self.values[layer].add(value)

    def save(self, path: Path) -> None:
        """Writes all running sums, from which the constants of any codec follow."""
        tensors = {
            f"{side}.{index}.{field.name}": torch.as_tensor(getattr(statistics, field.name)).clone()
            for side in SIDES
            for index, statistics in enumerate(getattr(self, side))
            for field in fields(ChannelStatistics)
        }
        save_file(tensors, path)

    @staticmethod
    def load(spec: DecoderSpec, path: Path) -> KvCalibrator:
        """Reads what `save` wrote for a decoder of the same spec."""
        calibrator, stored = KvCalibrator(spec), load_file(path)

        def read(side: str, index: int) -> ChannelStatistics:
            sums = {field.name: stored[f"{side}.{index}.{field.name}"] for field in fields(ChannelStatistics)}
            return ChannelStatistics(**{**sums, "count": int(sums["count"])})

        layers = range(len(spec.layers))
        calibrator.queries, calibrator.keys, calibrator.values = (
            [read(side, index) for index in layers] for side in SIDES
        )
        return calibrator

    def constants(self, kv_format: KvFormat) -> tuple[LayerKvConstants, ...]:
        """Constants of every layer for the codec of a recipe."""
        return tuple(self._layer(index, kv_format) for index in range(len(self.spec.layers)))

    def _layer(self, index: int, kv_format: KvFormat) -> LayerKvConstants:
        """Keys are centered where a number added to all scores changes nothing, values where probabilities sum to one."""
        queries, keys, values = self.queries[index], self.keys[index], self.values[index]
        attention = self.spec.layers[index].attention
        if attention is None:
            return LayerKvConstants(ChannelConstants.identity(0, 0), ChannelConstants.identity(0, 0))
        centered = attention.score_cap is None and not attention.learned_sinks
        if kv_format.scaling is KvScaling.STATIC:
            per_channel = kv_format.per_channel
            return LayerKvConstants(
                _static(keys, kv_format.bits, per_channel, centered),
                _static(values, kv_format.bits, per_channel, not attention.learned_sinks),
            )
        # one scale for a rotated key and a latent together: their channels differ by more than those of a head
        if kv_format.scaling is KvScaling.PER_TOKEN and (kv_format.bits < 8 or attention.latent):
            query_size = queries.root_mean_square.clamp_min(SMALLEST_SPREAD)
            key_balance = (keys.deviation.clamp_min(SMALLEST_SPREAD) / query_size).sqrt()
            key_center = keys.mean if centered else torch.zeros_like(keys.mean)
            value_center = torch.zeros_like(values.mean) if attention.learned_sinks else values.mean
            value_balance = values.deviation.clamp_min(SMALLEST_SPREAD).sqrt()
            return LayerKvConstants(
                ChannelConstants(key_center.float(), key_balance.float()),
                ChannelConstants(value_center.float(), value_balance.float()),
            )
        shape = keys.low.shape
        return LayerKvConstants(ChannelConstants.identity(*shape), ChannelConstants.identity(*shape))


def _heads(spec: DecoderSpec, layer: int) -> tuple[int, int]:
    """Key/value heads and channels of a head; none of a layer without attention."""
    attention = spec.layers[layer].attention
    return (0, 0) if attention is None else (attention.kv_heads, attention.head_dim)


def _static(statistics: ChannelStatistics, bits: int, per_channel: bool, centered: bool = True) -> ChannelConstants:
    """One scale and zero point for the layer, or each channel's own range mapped onto the codes, around zero if not centred."""
    steps = 2**bits - 1
    if per_channel and not centered:
        peak = torch.maximum(statistics.high, -statistics.low)
        floor = (peak.max() / LARGEST_SPREAD_RATIO).clamp_min(SMALLEST_SPREAD)
        zero = 2 ** (bits - 1)
        return ChannelConstants(torch.zeros_like(peak).float(), (peak.clamp_min(floor) / (zero - 1)).float(), 1.0, zero)
    if per_channel:
        spread = statistics.high - statistics.low
        floor = (spread.max() / LARGEST_SPREAD_RATIO).clamp_min(SMALLEST_SPREAD)
        middle = (statistics.low + statistics.high) / 2
        balance = spread.clamp_min(floor) / steps
        zero = 2 ** (bits - 1)
        center = middle + (zero - steps / 2) * balance
        return ChannelConstants(center.float(), balance.float(), 1.0, zero)
    largest = float(torch.maximum(statistics.high.max(), -statistics.low.min()).clamp_min(SMALLEST_SPREAD))
    identity = ChannelConstants.identity(*statistics.low.shape)
    zero = 2 ** (bits - 1)
    return ChannelConstants(identity.center, identity.balance, largest / (zero - 1), zero)
