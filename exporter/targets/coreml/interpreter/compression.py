"""The constexpr operators: compressed constants, expanded when a package is opened.

Each takes its parameters by name and returns its results: float32 where the program says fp16 or fp32, codes otherwise. The versions of
iOS16 pack bits themselves and give a `shape`; those of iOS18 have element types under a byte instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from exporter.registry import Registry
from exporter.targets.coreml.interpreter.storage import unpack_elements
from exporter.targets.coreml.interpreter.types import ElementType

Values = Mapping[str, torch.Tensor]
Expansion = Callable[[Values], tuple[torch.Tensor, ...]]

EXPANSIONS: Registry[Expansion] = Registry("Core ML constexpr operator")

SLAB_ELEMENTS = 1 << 22
"""Elements looked up at a time: their int32 places take as much memory as the result."""


def expansion(name: str) -> Callable[[Expansion], Expansion]:
    return lambda function: EXPANSIONS.add(name, function)


@expansion("constexpr_cast")
def cast(values: Values) -> tuple[torch.Tensor, ...]:
    return (values["source_val"],)


@expansion("constexpr_affine_dequantize")
def affine_dequantize(values: Values) -> tuple[torch.Tensor, ...]:
    """scale (data - zero_point), a scale per tensor or per index of one axis (iOS16)."""
    data = values["quantized_data"]
    shape = [1] * data.dim()
    shape[int(values["axis"]) % data.dim()] = -1
    scale, zero_point = (
        values[name].reshape(shape) if values[name].dim() else values[name].reshape([1] * data.dim())
        for name in ("scale", "zero_point")
    )
    return (shift_scale(data, scale, zero_point),)


@expansion("constexpr_blockwise_shift_scale")
def blockwise_shift_scale(values: Values) -> tuple[torch.Tensor, ...]:
    return (shift_scale(values["data"], values["scale"], values.get("offset")),)


@expansion("constexpr_lut_to_dense")
def lut_to_dense(values: Values) -> tuple[torch.Tensor, ...]:
    if "shape" in values:
        shape, lut = values["shape"].tolist(), values["lut"]
        indices = _unpacked(values["indices"], int(math.log2(len(lut))), shape)
        return (look_up(indices, lut.reshape([1] * len(shape) + [-1, 1])),)
    return (look_up(values["indices"], values["lut"], _vector_axis(values)),)


@expansion("constexpr_sparse_to_dense")
def sparse_to_dense(values: Values) -> tuple[torch.Tensor, ...]:
    mask = values["mask"]
    if "shape" in values:
        mask = _unpacked(mask, 1, values["shape"].tolist())
    return (spread(values["nonzero_data"], mask),)


@expansion("constexpr_lut_to_sparse")
def lut_to_sparse(values: Values) -> tuple[torch.Tensor, ...]:
    """The mask and the values under it; a vector of the table covers several elements of the mask."""
    mask, axis, width = values["indices_mask"], _vector_axis(values), values["lut"].shape[-1]
    dense = look_up(spread(values["indices_nonzero_data"], mask), values["lut"], axis)
    if axis is not None and width > 1:
        mask = mask.repeat_interleave(width, axis)
    return mask, dense[mask.bool()]


@expansion("constexpr_sparse_blockwise_shift_scale")
def sparse_blockwise_shift_scale(values: Values) -> tuple[torch.Tensor, ...]:
    mask = values["data_mask"]
    dense = shift_scale(spread(values["nonzero_data"], mask), values["scale"], values.get("offset"))
    return mask, dense[mask.bool()]


def shift_scale(data: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """(data - offset) scale in float32. `scale` and `offset` have the rank of `data`; each entry covers a block of equal size."""
    result = data.to(torch.float32, copy=True).contiguous()
    blocks = [(count, size // count) for size, count in zip(data.shape, scale.shape, strict=True)]
    blocked = result.view([size for block in blocks for size in block])
    spread_shape = [size for count, _ in blocks for size in (count, 1)]
    if offset is not None:
        blocked.sub_(offset.to(torch.float32).expand(scale.shape).reshape(spread_shape))
    blocked.mul_(scale.reshape(spread_shape))
    return result


def look_up(indices: torch.Tensor, lut: torch.Tensor, vector_axis: int | None = None) -> torch.Tensor:
    """Table entries for `indices`. lut [*groups, entries, width]: one table for each block of indices; an entry of width over 1 fills
    as many elements along `vector_axis`."""
    *groups, entries, width = lut.shape
    table = lut.reshape(-1, width)
    places = _table_starts(list(indices.shape), groups, entries)
    result = torch.empty((*indices.shape, width), dtype=lut.dtype)
    rows = max(1, SLAB_ELEMENTS // max(1, indices[0].numel()))
    for start in range(0, len(indices), rows):
        part = indices[start : start + rows]
        place = part.to(torch.int32) + places[0][start : start + rows]
        for each in places[1:]:
            place = place + each
        result[start : start + rows] = table.index_select(0, place.reshape(-1)).reshape(*part.shape, width)
    if width == 1 or vector_axis is None:
        return result.squeeze(-1)
    axis = vector_axis % indices.dim()
    return result.movedim(-1, axis + 1).flatten(axis, axis + 1).contiguous()


def _table_starts(shape: list[int], groups: list[int], entries: int) -> list[torch.Tensor]:
    """For each axis what an index along it adds to the place in the joined tables, shaped to be broadcast."""
    starts = []
    for axis, (size, count) in enumerate(zip(shape, groups, strict=True)):
        step = entries * math.prod(groups[axis + 1 :])
        block = torch.arange(size, dtype=torch.int32) // (size // count)
        starts.append((block * step).reshape([-1 if each == axis else 1 for each in range(len(shape))]))
    return starts


def spread(nonzero: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`nonzero` in order where `mask` is set, 0 elsewhere."""
    dense = torch.zeros(mask.shape, dtype=nonzero.dtype)
    dense[mask.bool()] = nonzero
    return dense


def _unpacked(packed: torch.Tensor, bits: int, shape: list[int]) -> torch.Tensor:
    codes = unpack_elements(packed.numpy().tobytes(), ElementType(f"uint{bits}"), math.prod(shape))
    return torch.tensor(codes).reshape(shape)


def _vector_axis(values: Values) -> int | None:
    return int(values["vector_axis"]) if "vector_axis" in values else None
