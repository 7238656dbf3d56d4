"""ExecutorchOps: what XNNPACK's programs compute in the graph, so that the host passes token ids and one position: angles, slots, masks."""

from __future__ import annotations

import torch
from torch import nn

from exporter.decoder.eager_ops import rotate
from exporter.decoder.recurrence import CausalConvolution, SelectiveScan, StateSpaceDual
from exporter.decoder.rotary import attention_factor, inverse_frequencies
from exporter.decoder.spec import AttentionSpec, ExpertsSpec, RotarySpec
from exporter.decoder.weight_names import sinks_name
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.constants import Constants
from exporter.targets.executorch.traced_ops import Multiply, TracedOps
from exporter.targets.executorch.xnnpack.experts import mixture
from exporter.targets.executorch.xnnpack.kv_state import Chunk, KvState
from exporter.targets.executorch.xnnpack.recurrence import Recurrences, RecurrentStates
from exporter.targets.executorch.xnnpack.weights import dynamic_product, looked_up
from exporter.targets.limits import WithoutLatents


class ExecutorchOps(WithoutLatents, TracedOps):
    """Interprets one chunk: token ids int64 [S] from the absolute position int64 [1] on."""

    def __init__(
        self,
        decoder: QuantizedDecoder,
        constants: Constants,
        state: nn.Module,
        states: RecurrentStates,
        chunk: Chunk,
        product: Multiply,
    ) -> None:
        super().__init__(decoder, constants, chunk.positions, product)
        self.state, self.chunk = state, chunk
        self._recurrences = Recurrences(constants, decoder.weights, states, chunk.start)
        self._tables: dict[RotarySpec, tuple[torch.Tensor, torch.Tensor]] = {}

    def embedding(self, token_ids: torch.Tensor, table: str) -> torch.Tensor:
        return looked_up(self.constants, table, self.weights.quantized(table), token_ids)

    def rotary(self, value: torch.Tensor, rotary: RotarySpec) -> torch.Tensor:
        return rotate(value, rotary, *self._angles(rotary))

    def attention(
        self, layer: int, attention: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        assert isinstance(self.state, KvState)
        return self.state.attend(layer, self.chunk, query, key, value, self.learned_sinks(layer, attention))

    def learned_sinks(self, layer: int, attention: AttentionSpec) -> torch.Tensor:
        """float32 [H], or empty."""
        name = sinks_name(layer)
        return self.constants.constant(
            name, lambda: self.weights.dense(name) if attention.learned_sinks else torch.empty(0)
        )

    def causal_convolution(self, layer: int, convolution: CausalConvolution, value: torch.Tensor) -> torch.Tensor:
        return self._recurrences.convolve(layer, convolution, value)

    def selective_scan(self, layer: int, scan: SelectiveScan, *rows: torch.Tensor) -> torch.Tensor:
        return self._recurrences.scan(layer, scan, *rows)

    def state_space_dual(self, layer: int, dual: StateSpaceDual, *rows: torch.Tensor) -> torch.Tensor:
        return self._recurrences.dual(layer, dual, *rows)

    def experts(self, value: torch.Tensor, prefix: str, experts: ExpertsSpec) -> torch.Tensor:
        return mixture(self.constants, self.weights, prefix, experts, value, self._product is dynamic_product)

    def _angles(self, rotary: RotarySpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of the chunk's positions, float32 [S, 1, dimensions / 2] each."""
        if rotary not in self._tables:
            steps = self.constants.constant(f"rotary.{len(self._tables)}", lambda: inverse_frequencies(rotary))
            angles = self.chunk.positions.float()[:, None, None] * steps
            factor = attention_factor(rotary)
            self._tables[rotary] = (angles.cos() * factor, angles.sin() * factor)
        return self._tables[rotary]
