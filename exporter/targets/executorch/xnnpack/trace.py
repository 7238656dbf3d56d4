"""The decoder as a module that torch.export can trace, over one set of constants and caches."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from exporter.decoder.forward import decode_chunk
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.recipe import ExecutorchSection, OperatorSet
from exporter.targets.executorch.constants import Constants
from exporter.targets.executorch.xnnpack.kv_state import Chunk, KvState
from exporter.targets.executorch.xnnpack.names import METHOD
from exporter.targets.executorch.xnnpack.ops import ExecutorchOps
from exporter.targets.executorch.xnnpack.packed_ops import PackedOps, PackedState
from exporter.targets.executorch.xnnpack.recurrence import RecurrentStates
from exporter.targets.executorch.xnnpack.weights import dynamic_product, float_product


class TracedDecoder(nn.Module):
    """Token ids int64 [S] and the position of the first one, int64 [1] -> logits of the last token, float32 [1, V]."""

    def __init__(self, decoder: QuantizedDecoder, settings: ExecutorchSection) -> None:
        super().__init__()
        self.decoder, self.constants = decoder, Constants()
        self.product = float_product if settings.activation_bits == 32 else dynamic_product
        own = settings.operators is OperatorSet.OWN and decoder.kv_format.bits <= 8
        self.ops = PackedOps if own else ExecutorchOps
        self.cache: nn.Module = PackedState(decoder) if own else KvState(decoder)
        self.states = RecurrentStates(decoder.spec)

    def forward(self, token_ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        chunk = Chunk(position, token_ids.shape[0])
        ops = self.ops(self.decoder, self.constants, self.cache, self.states, chunk, self.product)
        return decode_chunk(ops, self.decoder.spec, token_ids)


def traced_methods(decoder: QuantizedDecoder, settings: ExecutorchSection) -> dict[str, ExportedProgram]:
    """One method for a prompt's chunks and for single tokens: 1 to `chunk` tokens. With two methods XNNPACK would hold its packed
    weights twice in memory."""
    module, position = TracedDecoder(decoder, settings).eval(), torch.zeros(1, dtype=torch.int64)
    tokens = torch.zeros(min(2, decoder.chunk), dtype=torch.int64)
    with torch.no_grad():
        module(tokens, position)  # registers the constants
    shapes = ({0: Dim("tokens", min=1, max=decoder.chunk)}, None) if decoder.chunk > 1 else None
    return {METHOD: torch.export.export(module, (tokens, position), dynamic_shapes=shapes, strict=False)}
