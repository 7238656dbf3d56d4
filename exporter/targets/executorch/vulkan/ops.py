"""VulkanOps: the decoder in operators that the Vulkan delegate has. Angles come from tables, because fp16 has none for large positions."""

from __future__ import annotations

import torch

from exporter.decoder.eager_ops import rotate
from exporter.decoder.rotary import cosine_sine
from exporter.decoder.spec import Activation, AttentionSpec, RotarySpec
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.constants import Constants
from exporter.targets.executorch.traced_ops import TracedOps
from exporter.targets.executorch.vulkan.kv_state import Chunk, KvState, attend
from exporter.targets.executorch.vulkan.weights import grouped_product, looked_up
from exporter.targets.limits import WithoutExperts, WithoutLatents, WithoutRecurrence


class VulkanOps(WithoutExperts, WithoutLatents, WithoutRecurrence, TracedOps):
    """Interprets one chunk of token ids int64 [S]."""

    def __init__(self, decoder: QuantizedDecoder, constants: Constants, state: KvState, chunk: Chunk) -> None:
        super().__init__(decoder, constants, chunk.positions, grouped_product)
        self.state, self.chunk = state, chunk
        self._tables: dict[RotarySpec, tuple[torch.Tensor, torch.Tensor]] = {}

    def embedding(self, token_ids: torch.Tensor, table: str) -> torch.Tensor:
        return looked_up(self.constants, table, self.weights.quantized(table), token_ids)

    def rotary(self, value: torch.Tensor, rotary: RotarySpec) -> torch.Tensor:
        return rotate(value, rotary, *self._angles(rotary))

    def attention(
        self, layer: int, attention: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        return attend(self.state, layer, self.chunk, query, key, value)

    def activation(self, value: torch.Tensor, kind: Activation) -> torch.Tensor:
        """The delegate computes every GELU by its approximation, whatever the graph asks for: so does the graph that is checked."""
        return super().activation(value, Activation.GELU_TANH if kind is Activation.GELU else kind)

    def _angles(self, rotary: RotarySpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of the chunk's positions, float32 [S, 1, dimensions / 2] each."""
        if rotary not in self._tables:
            number = len(self._tables)

            def rows(side: int) -> torch.Tensor:
                table = self.constants.constant(
                    f"rotary.{number}.{side}", lambda: cosine_sine(rotary, torch.arange(self.decoder.context))[side]
                )
                return table[self.chunk.positions][:, None]

            self._tables[rotary] = (rows(0), rows(1))
        return self._tables[rotary]
