"""The decoder as a module that torch.export can trace, once per method, over one set of constants and caches."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from exporter.decoder.forward import decode_chunk
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.xnnpack.kv_state import Chunk, KvState
from exporter.targets.executorch.xnnpack.names import DECODE, PREFILL
from exporter.targets.executorch.xnnpack.ops import ExecutorchOps
from exporter.targets.executorch.xnnpack.weights import Constants


class TracedDecoder(nn.Module):
    """Token ids int64 [S] and the position of the first one, int64 [1] -> logits of the last token, float32 [1, V]."""

    def __init__(self, decoder: QuantizedDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.constants, self.cache = Constants(), KvState(decoder)

    def forward(self, token_ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        chunk = Chunk(position, token_ids.shape[0])
        ops = ExecutorchOps(self.decoder.spec, self.decoder.weights, self.constants, self.cache, chunk)
        return decode_chunk(ops, self.decoder.spec, token_ids)


def traced_methods(decoder: QuantizedDecoder) -> dict[str, ExportedProgram]:
    """`prefill` for 1 to `chunk` tokens, `decode` for one. Both name the same constants and caches."""
    module, position = TracedDecoder(decoder).eval(), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        module(torch.zeros(1, dtype=torch.int64), position)  # registers the constants
    one, some = torch.zeros(1, dtype=torch.int64), torch.zeros(min(3, decoder.chunk), dtype=torch.int64)
    methods = {}
    if decoder.chunk > 2:
        dynamic = {0: Dim("tokens", min=1, max=decoder.chunk)}
        methods[PREFILL] = torch.export.export(module, (some, position), dynamic_shapes=(dynamic, None), strict=False)
    methods[DECODE] = torch.export.export(module, (one, position), strict=False)
    return methods
