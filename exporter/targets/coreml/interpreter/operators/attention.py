"""Scaled dot product attention as one operator."""

from __future__ import annotations

import torch
from torch.nn import functional

from exporter.targets.coreml.interpreter.operators.base import Call, Kernel, operator


@operator("scaled_dot_product_attention")
def scaled_dot_product_attention(call: Call) -> Kernel:
    """softmax(query key^T / sqrt(Hd) + mask) value: query [..., S, Hd], key [..., T, Hd], value [..., T, Ev]. A mask of bools says
    which keys take part, a mask of floats is added to the scores."""

    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    return Kernel(run, ("query", "key", "value", "attn_mask"))
