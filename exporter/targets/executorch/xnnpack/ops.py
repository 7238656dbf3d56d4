"""ExecutorchOps: interprets the decoder on torch tensors while torch.export watches. Activations are float32 [S, n], without a batch axis.

Matrices that read the same input become one product. Everything that follows from the position of the chunk (angles, slots, masks) is
computed in the graph, so that the host passes token ids and one position.
"""

from __future__ import annotations

import torch
from torch import nn

from exporter.decoder.eager_ops import activate, capped, normalize, rotate
from exporter.decoder.rotary import attention_factor, inverse_frequencies
from exporter.decoder.spec import Activation, AttentionSpec, ExpertsSpec, NormSpec, RotarySpec, same_input
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.xnnpack.experts import mixture
from exporter.targets.executorch.xnnpack.kv_state import Chunk, KvState
from exporter.targets.executorch.xnnpack.weights import Constants, Product, looked_up
from exporter.targets.limits import WithoutLatents, WithoutRecurrence


class ExecutorchOps(WithoutRecurrence, WithoutLatents):
    """Interprets one chunk: token ids int64 [S] from the absolute position int64 [1] on."""

    def __init__(
        self, decoder: QuantizedDecoder, constants: Constants, state: nn.Module, chunk: Chunk, product: type[Product]
    ) -> None:
        self.decoder, self.weights = decoder, decoder.weights
        self.constants, self.state, self.chunk, self._product = constants, state, chunk, product
        self._tables: dict[RotarySpec, tuple[torch.Tensor, torch.Tensor]] = {}
        self._products: dict[str, torch.Tensor] = {}

    def embedding(self, token_ids: torch.Tensor, table: str) -> torch.Tensor:
        return looked_up(self.constants, table, self.weights.quantized(table), token_ids)

    def positions(self, table: str) -> torch.Tensor:
        return self._vector(table)[self.chunk.positions]

    def linear(self, value: torch.Tensor, matrix: str, bias: bool) -> torch.Tensor:
        if matrix not in self._products:
            self._multiply(value, matrix, bias)
        return self._products[matrix]

    def rms_norm(self, value: torch.Tensor, gain: str, norm: NormSpec) -> torch.Tensor:
        return normalize(value, self._vector(gain), norm)

    def layer_norm(self, value: torch.Tensor, gain: str, norm: NormSpec) -> torch.Tensor:
        offset = self._vector(f"{gain}.bias") if norm.bias else None
        return torch.nn.functional.layer_norm(value, value.shape[-1:], self._vector(gain), offset, norm.eps)

    def split_heads(self, value: torch.Tensor, heads: int) -> torch.Tensor:
        return value.unflatten(-1, (heads, -1))

    def rotary(self, value: torch.Tensor, rotary: RotarySpec) -> torch.Tensor:
        return rotate(value, rotary, *self._angles(rotary))

    def attention(
        self, layer: int, attention: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        assert isinstance(self.state, KvState)
        return self.state.attend(layer, self.chunk, query, key, value)

    def activation(self, value: torch.Tensor, kind: Activation) -> torch.Tensor:
        return activate(value, kind)

    def multiply(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left * right

    def add(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + right

    def experts(self, value: torch.Tensor, prefix: str, experts: ExpertsSpec) -> torch.Tensor:
        return mixture(self.constants, self.weights, prefix, experts, value)

    def token_gate(self, value: torch.Tensor, source: torch.Tensor, vector: str) -> torch.Tensor:
        return value * (source * self._vector(vector)).sum(-1, keepdim=True).sigmoid()

    def logits(self, value: torch.Tensor, table: str, bias: str | None = None) -> torch.Tensor:
        """Only the last token meets the head: [1, V]."""
        offset = None if bias is None else lambda: self.weights.dense(bias)
        return self._product(self.constants, table, [self.weights.quantized(table)], offset)(value[-1:])

    def soft_cap(self, value: torch.Tensor, cap: float) -> torch.Tensor:
        return capped(value, cap)

    def _angles(self, rotary: RotarySpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of the chunk's positions, float32 [S, 1, dimensions / 2] each."""
        if rotary not in self._tables:
            steps = self.constants.constant(f"rotary.{len(self._tables)}", lambda: inverse_frequencies(rotary))
            angles = self.chunk.positions.float()[:, None, None] * steps
            factor = attention_factor(rotary)
            self._tables[rotary] = (angles.cos() * factor, angles.sin() * factor)
        return self._tables[rotary]

    def _vector(self, name: str) -> torch.Tensor:
        return self.constants.constant(name, lambda: self.weights.dense(name))

    def _multiply(self, value: torch.Tensor, leader: str, bias: bool) -> None:
        """One product for a matrix and for those that will ask for the same input next."""
        names = [leader, *same_input(leader)]
        parts = [self.weights.quantized(name) for name in names]

        def biases() -> torch.Tensor:
            return torch.cat([self.weights.dense(f"{name}.bias") for name in names])

        product = self._product(self.constants, leader, parts, biases if bias else None)(value)
        self._products.update(zip(names, product.split([part.out_features for part in parts], dim=-1), strict=True))
