"""TracedOps: interprets the decoder on torch tensors while torch.export watches. Activations are float32 [S, n], without a batch axis.

Matrices that read the same input become one product. Tables, angles and attention are the backend's own affair: subclasses add
`embedding`, `rotary` and `attention`, and say what multiplies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from exporter.decoder.eager_ops import activate, capped, normalize
from exporter.decoder.spec import Activation, NormSpec
from exporter.decoder.weight_names import same_input
from exporter.quantize.int4 import QuantizedMatrix
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.constants import Constants


@dataclass(frozen=True)
class Factor:
    """What activations are multiplied by: one matrix, or several of one input side by side, and what is added."""

    constants: Constants
    name: str
    parts: list[QuantizedMatrix]
    bias: Callable[[], torch.Tensor] | None

    def offset(self) -> torch.Tensor | None:
        """float32 [out]."""
        return None if self.bias is None else self.constants.constant(f"{self.name}.bias", self.bias)


Multiply = Callable[[torch.Tensor, Factor], torch.Tensor]
"""float32 [S, in] -> float32 [S, out]."""


class TracedOps:
    """Interprets one chunk whose absolute positions are int64 [S]."""

    def __init__(
        self, decoder: QuantizedDecoder, constants: Constants, positions: torch.Tensor, product: Multiply
    ) -> None:
        self.decoder, self.weights, self.constants = decoder, decoder.weights, constants
        self._positions, self._product = positions, product
        self._products: dict[str, torch.Tensor] = {}

    def positions(self, table: str) -> torch.Tensor:
        return self.vector(table)[self._positions]

    def linear(self, value: torch.Tensor, matrix: str, bias: bool) -> torch.Tensor:
        if matrix not in self._products:
            self._multiply(value, matrix, bias)
        return self._products.pop(matrix)  # another layer may multiply by the same matrix

    def rms_norm(self, value: torch.Tensor, gain: str, norm: NormSpec) -> torch.Tensor:
        return normalize(value, self.vector(gain), norm)

    def layer_norm(self, value: torch.Tensor, gain: str, norm: NormSpec) -> torch.Tensor:
        offset = self.vector(f"{gain}.bias") if norm.bias else None
        return torch.nn.functional.layer_norm(value, value.shape[-1:], self.vector(gain), offset, norm.eps)

    def split(self, value: torch.Tensor, sizes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        return value.split(sizes, dim=-1)

    def join(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.cat((left, right), dim=-1)

    def split_heads(self, value: torch.Tensor, heads: int) -> torch.Tensor:
        return value.unflatten(-1, (heads, -1))

    def activation(self, value: torch.Tensor, kind: Activation) -> torch.Tensor:
        return activate(value, kind)

    def multiply(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left * right

    def token_gate(self, value: torch.Tensor, source: torch.Tensor, vector: str) -> torch.Tensor:
        return value * (source * self.vector(vector)).sum(-1, keepdim=True).sigmoid()

    def add(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + right

    def logits(self, value: torch.Tensor, table: str, bias: str | None = None) -> torch.Tensor:
        """Only the last token meets the head: [1, V]."""
        offset = None if bias is None else lambda: self.weights.dense(bias)
        return self._product(value[-1:], Factor(self.constants, table, [self.weights.quantized(table)], offset))

    def soft_cap(self, value: torch.Tensor, cap: float) -> torch.Tensor:
        return capped(value, cap)

    def vector(self, name: str) -> torch.Tensor:
        """A float vector or table as a constant."""
        return self.constants.constant(name, lambda: self.weights.dense(name))

    def _multiply(self, value: torch.Tensor, leader: str, bias: bool) -> None:
        """One product for a matrix and for those that will ask for the same input next."""
        names = [leader, *same_input(leader)]
        parts = [self.weights.quantized(name) for name in names]

        def biases() -> torch.Tensor:
            return torch.cat([self.weights.dense(f"{name}.bias") for name in names])

        product = self._product(value, Factor(self.constants, leader, parts, biases if bias else None))
        widths = [part.out_features for part in parts]
        pieces = [product] if len(parts) == 1 else product.split(widths, dim=-1)
        self._products.update(zip(names, pieces, strict=True))
