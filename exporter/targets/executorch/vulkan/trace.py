"""The decoder as a module that torch.export can trace, over one set of constants and caches."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from exporter.decoder.forward import decode_chunk
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.constants import Constants
from exporter.targets.executorch.vulkan.kv_state import Chunk, KvState
from exporter.targets.executorch.vulkan.ops import VulkanOps


class TracedDecoder(nn.Module):
    """Token ids int64 [S] and the position of the first one, int64 [1] -> logits of the last token, float32 [1, V]."""

    order: torch.Tensor
    slots: torch.Tensor

    def __init__(self, decoder: QuantizedDecoder) -> None:
        super().__init__()
        self.decoder, self.constants, self.cache = decoder, Constants(), KvState(decoder)
        self.register_buffer("order", torch.arange(decoder.chunk))
        self.register_buffer("slots", torch.arange(decoder.context))

    def forward(self, token_ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        chunk = Chunk(position, self.order, self.slots, token_ids.shape[0])
        ops = VulkanOps(self.decoder, self.constants, self.cache, chunk)
        return decode_chunk(ops, self.decoder.spec, token_ids)


@torch.no_grad()
def traced_method(decoder: QuantizedDecoder) -> ExportedProgram:
    """One method for a prompt's chunks and for single tokens: 1 to `chunk` tokens. A delegate keeps its caches to itself, so that two
    methods would not see each other's."""
    module, position = TracedDecoder(decoder).eval(), torch.zeros(1, dtype=torch.int64)
    tokens = torch.zeros(min(2, decoder.chunk), dtype=torch.int64)
    module(tokens, position)  # registers the constants
    module.cache.clear()
    shapes = ({0: Dim("tokens", min=1, max=decoder.chunk)}, None) if decoder.chunk > 1 else None
    return torch.export.export(module, (tokens, position), dynamic_shapes=shapes, strict=False)
