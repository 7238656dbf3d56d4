"""Formats of weights and caches as plain data, free of torch: what `plan` computes with and what quantizers obey."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from exporter.decoder.spec import DecoderSpec
from exporter.decoder.weight_names import HEAD

CODES_PER_LANE = 3
"""4-bit codes that an fp16 number holds exactly: its integers reach 2048, so 12 bits with a sign."""


PALETTE_COLORS = 16
"""Numbers in a palette: 4-bit indices."""


class ScaleFormat(StrEnum):
    """How a group's scale is stored."""

    FP16 = "fp16"
    BF16 = "bf16"
    LPBQ = "lpbq"


class RoundingMethod(StrEnum):
    """How codes are chosen."""

    RTN = "rtn"
    SEARCH = "search"
    GPTQ = "gptq"


@dataclass(frozen=True)
class WeightFormat:
    """Bits, grouping and scale format of one quantized matrix. With `palette_rows`, so many rows share a palette of 16 numbers in
    place of scales."""

    bits: int
    group_size: int
    scale_format: ScaleFormat
    palette_rows: int = 0

    @property
    def code_range(self) -> tuple[int, int]:
        return (-8, 7) if self.bits == 4 else (-127, 127)

    def group_count(self, in_features: int) -> int:
        return math.ceil(in_features / self.group_size)

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of codes and scales for a [rows, columns] matrix."""
        codes = rows * (math.ceil(columns / 2) if self.bits == 4 else columns)
        if self.palette_rows:
            return codes + 2 * PALETTE_COLORS * math.ceil(rows / self.palette_rows)
        groups = rows * self.group_count(columns)
        if self.scale_format is ScaleFormat.LPBQ:
            return codes + groups + 4 * rows
        return codes + 2 * groups


@dataclass(frozen=True)
class WeightSettings:
    """How weights are quantized: part of the recipe, the same for every target of a run."""

    method: RoundingMethod = RoundingMethod.GPTQ
    group_size: int = 32
    scale_format: ScaleFormat = ScaleFormat.LPBQ
    embedding_bits: int = 4
    head_bits: int = 4
    damping: float = 0.01
    palette_rows: int = 0

    def matrix_format(self) -> WeightFormat:
        return WeightFormat(4, self.group_size, self.scale_format, self.palette_rows)

    def table_format(self, name: str, spec: DecoderSpec) -> WeightFormat:
        """INT8 tables have one scale per row."""
        bits = self.head_bits if name == HEAD else self.embedding_bits
        if bits == 8:
            scale_format = ScaleFormat.FP16 if self.scale_format is ScaleFormat.LPBQ else self.scale_format
            return WeightFormat(8, spec.hidden_size, scale_format)
        return self.matrix_format()


class KvScaling(StrEnum):
    """Where the scale of a cached vector comes from."""

    NONE = "none"
    PER_TOKEN = "per_token"
    STATIC = "static"


@dataclass(frozen=True)
class KvFormat:
    """Bits and scaling of a cache. `bits` 16 or 32 store floats, 8 and 4 store packed codes.

    `per_channel` concerns static scales: every channel's own range is mapped onto the codes, instead of the layer's.
    `half_lanes` packs three 4-bit codes into an fp16 number, for runtimes whose caches hold nothing else. `float_scales` keeps the
    scales and zero points of tokens in float32: only a reference of exact arithmetic does.
    """

    bits: int
    scaling: KvScaling
    zero_point: bool = False
    rotation: bool = False
    per_channel: bool = False
    half_lanes: bool = False
    float_scales: bool = False

    def without_half_rounding(self) -> KvFormat:
        """The same codec where nothing is rounded to 16 bits: codes stay codes, everything else stays float."""
        if self.scaling is KvScaling.NONE:
            return replace(self, bits=32)
        return replace(self, float_scales=self.scaling is KvScaling.PER_TOKEN)

    @property
    def positive_scales(self) -> bool:
        """Whether per-token scales are never negative. At 4 bits a sign buys the sixteenth level; at 8 bits one level of 256 is
        worth less than weights (probability times scale) that have no sign and can be rounded twice as finely."""
        return self.zero_point or self.bits >= 8

    def vector_bytes(self, head_dim: int) -> int:
        """Bytes of one cached vector of one head, scales included."""
        codes = 2 * math.ceil(head_dim / CODES_PER_LANE) if self.half_lanes else math.ceil(head_dim * self.bits / 8)
        if self.scaling is KvScaling.PER_TOKEN:
            return codes + (4 if self.zero_point else 2)
        return codes
