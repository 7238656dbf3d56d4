"""INT4 and INT8 weight codes: storage, packing, scale formats, round-to-nearest and scale search.

A matrix [out, in] is quantized symmetrically in groups of `group_size` along its input dimension; the last group may be a
remainder. value = code * scale[row, group], codes in [-8, 7] (INT4) or [-127, 127] (INT8), scales positive because XNNPACK and
the HTP demand it. Scales are always exactly representable in their format, so every runtime computes from the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from exporter.quantize.formats import ScaleFormat, WeightFormat

LPBQ_STEPS = 16
"""Block scales of the HTP are an integer 1..16 times the channel scale (low-power block quantization)."""

LPBQ_SEARCH_OFFSETS = torch.arange(0.0, -7.0, -1.0)
"""Block multipliers tried below the one that clips nothing: clipping more than that has never paid."""

LPBQ_SIGNIFICANT_BITS = 7
"""Channel scales keep 7 significant bits, so that channel scale times 1..16 is exact in fp16's 11."""


@dataclass(frozen=True)
class QuantizedMatrix:
    """Codes and scales of one matrix [out, in].

    packed            uint8 [out, ceil(in / 2)], low nibble first, two's complement nibbles; int8 [out, in] when bits == 8
    scales            float32 [out, groups]
    channel_scales    float32 [out], LPBQ only
    multipliers       uint8 [out, groups], LPBQ only: scales = channel_scales[:, None] * multipliers
    palettes          float32 [out / palette_rows, 16]: codes are indices 0..15 into the palette of their row, and scales [out, 0]
    """

    packed: torch.Tensor
    scales: torch.Tensor
    in_features: int
    format: WeightFormat
    channel_scales: torch.Tensor | None = None
    multipliers: torch.Tensor | None = None
    palettes: torch.Tensor | None = None

    @property
    def out_features(self) -> int:
        return self.packed.shape[0]

    def codes(self) -> torch.Tensor:
        """int8 [out, in]."""
        if self.palettes is not None:
            return unpack_nibbles(self.packed, self.in_features) & 0xF
        return unpack_nibbles(self.packed, self.in_features) if self.format.bits == 4 else self.packed

    def dequantize(self) -> torch.Tensor:
        """float32 [out, in]."""
        return self.rows(slice(None))

    def rows(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Some rows dequantized: int64 [S] or a slice -> float32 [S, in]; what an embedding lookup reads."""
        packed = self.packed[index]
        if self.palettes is not None:
            numbers = torch.arange(self.out_features)[index] // self.format.palette_rows
            return _looked_up(unpack_nibbles(packed, self.in_features) & 0xF, self.palettes[numbers])
        codes = unpack_nibbles(packed, self.in_features) if self.format.bits == 4 else packed
        return scale_groups(codes.float(), self.scales[index], self.format.group_size)


def _looked_up(indices: torch.Tensor, palettes: torch.Tensor) -> torch.Tensor:
    """int8 [rows, in] from 0 to 15 and a palette [rows, 16] for each row -> float32 [rows, in]."""
    return palettes.gather(1, indices.long())


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """int8 [..., n] with values in [-8, 7] -> uint8 [..., ceil(n / 2)]; even elements in the low nibble."""
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    nibbles = codes.to(torch.uint8) & 0xF
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack_nibbles(packed: torch.Tensor, count: int) -> torch.Tensor:
    """Inverse of `pack_nibbles`: uint8 [..., ceil(count / 2)] -> int8 [..., count]."""
    low = (packed << 4).view(torch.int8) >> 4
    high = packed.view(torch.int8) >> 4
    return torch.stack((low, high), dim=-1).flatten(-2)[..., :count]


def scale_groups(values: torch.Tensor, scales: torch.Tensor, group_size: int) -> torch.Tensor:
    """Multiplies float32 [out, in] in place by the scales [out, groups] of its groups of columns, and returns it."""
    whole = values.shape[1] // group_size
    values[:, : whole * group_size].unflatten(1, (whole, group_size)).mul_(scales[:, :whole, None])
    values[:, whole * group_size :].mul_(scales[:, whole:])  # a remainder is one group, so one column of scales
    return values


def round_scale(scale: torch.Tensor, scale_format: ScaleFormat) -> torch.Tensor:
    """Rounds positive float32 scales to the storage format, never to zero."""
    dtype = torch.float16 if scale_format is ScaleFormat.FP16 else torch.bfloat16
    smallest = 2.0**-24 if scale_format is ScaleFormat.FP16 else 2.0**-126
    return scale.clamp_min(smallest).to(dtype).float()


def round_channel_scale(scale: torch.Tensor) -> torch.Tensor:
    """Rounds up to `LPBQ_SIGNIFICANT_BITS` significant bits: up, so that the largest group never clips."""
    mantissa, exponent = torch.frexp(scale.clamp_min(2.0**-18))
    steps = 2.0**LPBQ_SIGNIFICANT_BITS
    return torch.ldexp(torch.ceil(mantissa * steps) / steps, exponent)


def round_to_codes(values: torch.Tensor, scale: torch.Tensor, code_range: tuple[int, int]) -> torch.Tensor:
    """Nearest code of each value, as float."""
    return torch.round(values / scale).clamp_(*code_range)


TRIED_ELEMENTS = 1 << 24
"""Weights times candidates that are rounded at a time: a whole table at once would take gigabytes."""


class ScaleChooser:
    """Chooses one scale per row for a group of columns, from candidates allowed by the format.

    Round-to-nearest uses the largest magnitude; the search minimizes the squared error, weighted per column by `importance`
    (the diagonal of the input covariance) when given.
    """

    def __init__(self, weight: torch.Tensor, weight_format: WeightFormat, search: bool) -> None:
        self.format = weight_format
        self.search = search
        self.channel_scales: torch.Tensor | None = None
        if weight_format.scale_format is ScaleFormat.LPBQ:
            top = weight_format.code_range[1]
            self.channel_scales = round_channel_scale(weight.abs().amax(dim=1) / (top * LPBQ_STEPS))

    def choose(self, group: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
        """float32 [out, columns] -> scale float32 [out]. Without a search, groups may come side by side: [out, groups, columns]."""
        candidates = self._candidates(group)
        if not self.search:
            return candidates[0]
        rows = max(1, TRIED_ELEMENTS // (candidates.shape[0] * group.shape[1]))
        pieces = zip(candidates.split(rows, dim=1), group.split(rows), strict=True)
        return torch.cat([self._best(tried, part, importance) for tried, part in pieces])

    def _best(self, candidates: torch.Tensor, group: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        """Of scales [candidates, out] for columns [out, columns], each row's best: [out]."""
        scales = candidates[:, :, None]
        low, high = self.format.code_range
        error = torch.div(group[None], scales).round_().clamp_(low, high).mul_(scales).sub_(group[None]).square_()
        total = error.sum(2) if importance is None else error @ importance
        return candidates.gather(0, total.argmin(0, keepdim=True))[0]

    def _candidates(self, group: torch.Tensor) -> torch.Tensor:
        """[candidates, out, ...], all representable in the format."""
        largest = group.abs().amax(dim=-1)
        top = self.format.code_range[1]
        if self.channel_scales is not None:
            channel = self.channel_scales if group.dim() == 2 else self.channel_scales[:, None]
            widest = torch.ceil(largest / top / channel - 1e-4)
            if not self.search:
                return (widest.clamp_(1, LPBQ_STEPS) * channel)[None]
            return (widest[None] + LPBQ_SEARCH_OFFSETS[:, None]).clamp_(1, LPBQ_STEPS) * channel[None]
        if not self.search:
            return round_scale(largest / (top + 0.5 if self.format.bits == 4 else top), self.format.scale_format)[None]
        nearest = torch.tensor([top + 0.5 if self.format.bits == 4 else float(top)])
        divisors = torch.cat((nearest, torch.linspace(0.85 * top, 1.45 * top, 28)))
        return round_scale(largest[None, :] / divisors[:, None], self.format.scale_format)

    def build(self, codes: torch.Tensor, scales: torch.Tensor) -> QuantizedMatrix:
        """Assembles the stored matrix from int8 codes [out, in] and chosen scales [out, groups]."""
        packed = pack_nibbles(codes) if self.format.bits == 4 else codes.contiguous()
        multipliers = None
        if self.channel_scales is not None:
            multipliers = torch.round(scales / self.channel_scales[:, None]).to(torch.uint8)
        return QuantizedMatrix(packed, scales, codes.shape[1], self.format, self.channel_scales, multipliers)


def quantize_nearest(
    weight: torch.Tensor, weight_format: WeightFormat, search: bool = False, importance: torch.Tensor | None = None
) -> QuantizedMatrix:
    """Quantizes float32 [out, in] without error feedback."""
    chooser = ScaleChooser(weight, weight_format, search)
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], weight_format.group_count(weight.shape[1]))
    size, searched = weight_format.group_size, 0
    if not search:
        whole = weight.shape[1] // size
        searched = whole * size
        groups = weight[:, :searched].unflatten(1, (whole, size))
        scales[:, :whole] = chooser.choose(groups)
        rounded = round_to_codes(groups, scales[:, :whole, None], weight_format.code_range)
        codes[:, :searched] = rounded.flatten(1).to(torch.int8)
    for start in range(searched, weight.shape[1], size):
        columns = slice(start, start + size)
        group = weight[:, columns]
        scale = chooser.choose(group, None if importance is None else importance[columns])
        scales[:, start // size] = scale
        codes[:, columns] = round_to_codes(group, scale[:, None], weight_format.code_range).to(torch.int8)
    return chooser.build(codes, scales)


def join_rows(parts: list[QuantizedMatrix]) -> QuantizedMatrix:
    """Matrices of one format and width, one above the other."""

    def joined(tensors: list[torch.Tensor | None]) -> torch.Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(present) if present else None

    first = parts[0]
    if len(parts) == 1:
        return first
    return QuantizedMatrix(
        torch.cat([part.packed for part in parts]),
        torch.cat([part.scales for part in parts]),
        first.in_features,
        first.format,
        joined([part.channel_scales for part in parts]),
        joined([part.multipliers for part in parts]),
        joined([part.palettes for part in parts]),
    )


def split_rows(matrix: QuantizedMatrix, rows: list[int]) -> list[QuantizedMatrix]:
    """Undoes stacking: consecutive blocks of rows as matrices of their own."""

    def parts(tensor: torch.Tensor | None) -> list[torch.Tensor | None]:
        return [None] * len(rows) if tensor is None else [piece.clone() for piece in tensor.split(rows)]

    palettes: list[torch.Tensor | None] = [None] * len(rows)
    if matrix.palettes is not None:
        palettes = list(matrix.palettes.split([count // matrix.format.palette_rows for count in rows]))
    pieces = zip(
        matrix.packed.split(rows),
        matrix.scales.split(rows),
        parts(matrix.channel_scales),
        parts(matrix.multipliers),
        palettes,
    )
    return [
        QuantizedMatrix(packed.clone(), scales.clone(), matrix.in_features, matrix.format, channel, multipliers, colors)
        for packed, scales, channel, multipliers, colors in pieces
    ]
