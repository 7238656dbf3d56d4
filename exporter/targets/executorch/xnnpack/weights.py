"""Quantized matrices as constants of a traced program, in the patterns that XNNPACK recognizes.

XNNPACK rounds each row of activations to INT8 when it meets it, and multiplies by the very codes and scales of the checkpoint: INT4
with a bf16 scale per group, INT8 with one scale per row. Nothing is quantized a second time.

A table that is also the head keeps one order of nibbles, XNNPACK's (first element low), so that both copies are equal bytes; the
lookup operator reads the first element from the high nibble, hence the exchange of neighbours after it. `aliasing` then stores them
once.
"""

from __future__ import annotations

from collections.abc import Callable

import executorch.exir.passes._quant_patterns_and_replacements
import executorch.kernels.quantized  # noqa: F401  and their variants with an output argument
import torch
from torch import nn
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401  defines the others

from exporter.quantize.int4 import QuantizedMatrix, join_rows
from exporter.targets.executorch.constants import Constants
from exporter.targets.executorch.traced_ops import Factor

GROUP_MULTIPLE = 32
"""XNNPACK's groups are whole multiples of this, and so are the inputs of a grouped matrix."""

_OPERATORS = torch.ops.quantized_decomposed


def float_product(rows: torch.Tensor, factor: Factor) -> torch.Tensor:
    """float32 [S, in] -> float32 [S, out]. Activations stay float32: this project's own operator."""
    chosen = factor.parts[0].format
    codes, scales = packed_constants(factor.constants, factor.name, lambda: join_rows(factor.parts))
    product = torch.ops.slm.linear(rows, codes, scales, chosen.bits, chosen.group_size)
    offset = factor.offset()
    return product if offset is None else product + offset


def dynamic_product(rows: torch.Tensor, factor: Factor) -> torch.Tensor:
    """float32 [S, in] -> float32 [S, out]. Activations are rounded to INT8 row by row: XNNPACK's."""
    scale, zero = _OPERATORS.choose_qparams_per_token_asymmetric.default(rows, torch.int8)
    rounded = _OPERATORS.quantize_per_token.default(rows, scale, zero, -128, 127, torch.int8)
    rows = _OPERATORS.dequantize_per_token.default(rounded, scale, zero, -128, 127, torch.int8, torch.float32)
    return nn.functional.linear(rows, _matrix(factor), factor.offset())


def _matrix(factor: Factor) -> torch.Tensor:
    """float32 [out, in]; an operation of the graph, which XNNPACK takes together with the product."""
    chosen, constant, name = factor.parts[0].format, factor.constants.constant, factor.name
    codes = constant(f"{name}.codes", lambda: join_rows(factor.parts).codes())
    scales = constant(f"{name}.scales", lambda: _scales(factor))
    zeros = constant(f"{name}.zeros", lambda: torch.zeros_like(scales, dtype=torch.int64))
    low, high = chosen.code_range
    if chosen.bits == 4:
        return _OPERATORS.dequantize_per_channel_group.default(
            codes, scales, zeros, low, high, torch.int8, chosen.group_size, torch.float32
        )
    return _OPERATORS.dequantize_per_channel.default(codes, scales, zeros, 0, low, high, torch.int8)


def _scales(factor: Factor) -> torch.Tensor:
    scales = join_rows(factor.parts).scales
    return scales if factor.parts[0].format.bits == 4 else scales[:, 0]


def packed_constants(
    constants: Constants, name: str, make: Callable[[], QuantizedMatrix]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales [out, groups] as tables and float products read them: INT8, or nibbles plus 8 in the order of XNNPACK."""

    def codes() -> torch.Tensor:
        matrix = make()
        return matrix.codes() if matrix.format.bits == 8 else matrix.packed ^ 0x88  # +8 flips a nibble's highest bit

    return (
        constants.constant(f"{name}.packed", codes),
        constants.constant(f"{name}.packed_scales", lambda: half_where_exact(make().scales)),
    )


def looked_up(constants: Constants, name: str, table: QuantizedMatrix, token_ids: torch.Tensor) -> torch.Tensor:
    """Rows of a quantized table: int64 [S] -> float32 [S, D]."""
    codes, scales = packed_constants(constants, name, lambda: table)
    if table.format.bits == 8:
        return _OPERATORS.embedding_byte.dtype(codes, scales, None, -128, 127, token_ids, dtype=torch.float32)
    rows = _OPERATORS.embedding_4bit.dtype(codes, scales, None, -8, 7, token_ids, dtype=torch.float32)
    return rows.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def half_where_exact(values: torch.Tensor) -> torch.Tensor:
    half = values.half()
    return half if torch.equal(half.float(), values) else values
