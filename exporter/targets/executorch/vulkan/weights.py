"""Quantized matrices as constants of a traced program, in the patterns that the Vulkan delegate recognizes.

A product of float activations with a matrix that is dequantized in groups becomes `et_vk.linear_q4gsw`; a lookup of INT4 rows becomes
`et_vk.embedding_q4gsw`. Both keep the very codes and scales of the checkpoint. The delegate stores equal bytes once, so that the codes of
a tied table are one piece; their scales lie in two orders.
"""

from __future__ import annotations

import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401  defines embedding_4bit
import torch
import torchao.quantization  # noqa: F401  defines dequantize_affine
from torch import nn
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401

from exporter.quantize.int4 import QuantizedMatrix, join_rows
from exporter.targets.executorch.constants import Constants
from exporter.targets.executorch.traced_ops import Factor

CODE_RANGE = (-8, 7)


def grouped_product(rows: torch.Tensor, factor: Factor) -> torch.Tensor:
    """float32 [S, in] -> float32 [S, out], by INT4 matrices. With a batch axis, because the delegate looks through one change of shape
    before a product: the one that takes the axis away, and not one of the model's own."""
    return nn.functional.linear(rows[None], _matrix(factor), factor.offset())[0]


def _matrix(factor: Factor) -> torch.Tensor:
    """float32 [out, in]; an operation of the graph, which the delegate takes together with the product."""
    constant, name, parts = factor.constants.constant, factor.name, factor.parts
    codes = constant(f"{name}.codes", lambda: join_rows(parts).codes())
    scales = constant(f"{name}.scales", lambda: join_rows(parts).scales)
    zeros = constant(f"{name}.zeros", lambda: torch.zeros_like(scales, dtype=torch.int8))
    block = [1, parts[0].format.group_size]
    return torch.ops.torchao.dequantize_affine(codes, block, scales, zeros, torch.int8, *CODE_RANGE)


def looked_up(constants: Constants, name: str, table: QuantizedMatrix, token_ids: torch.Tensor) -> torch.Tensor:
    """Rows of an INT4 table: int64 [S] -> float32 [S, D]. The lookup has the first element of a pair in the high nibble."""

    def codes() -> torch.Tensor:
        nibbles = table.packed ^ 0x88  # +8 flips a nibble's highest bit
        return (nibbles << 4) | (nibbles >> 4)

    packed = constants.constant(f"{name}.lookup", codes)
    scales = constants.constant(f"{name}.lookup_scales", table.scales.clone)  # the delegate turns the product's over
    operator = torch.ops.quantized_decomposed.embedding_4bit.dtype
    return operator(packed, scales, None, *CODE_RANGE, token_ids, dtype=torch.float32)
