"""Weight stores: where an interpreter finds the numbers behind a weight's canonical name."""

from __future__ import annotations

from typing import Protocol

import torch

from exporter.quantize.int4 import QuantizedMatrix


class WeightStore(Protocol):
    """Full-precision view of named weights, float32."""

    def dense(self, name: str) -> torch.Tensor:
        """The weight as float32; dequantized where it is stored quantized."""

    def rows(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """Rows of a table: int64 [S] -> float32 [S, D]."""


class DecoderWeights:
    """Weights in memory: quantized matrices and float32 vectors. Dequantized matrices are kept once used."""

    def __init__(self, matrices: dict[str, QuantizedMatrix], vectors: dict[str, torch.Tensor]) -> None:
        self.matrices = matrices
        self.vectors = vectors
        self._dense: dict[str, torch.Tensor] = {}

    def quantized(self, name: str) -> QuantizedMatrix:
        return self.matrices[name]

    def dense(self, name: str) -> torch.Tensor:
        if name in self.vectors:
            return self.vectors[name]
        if name not in self._dense:
            self._dense[name] = self.matrices[name].dequantize()
        return self._dense[name]

    def rows(self, name: str, index: torch.Tensor) -> torch.Tensor:
        return self.vectors[name][index] if name in self.vectors else self.matrices[name].rows(index)

    def release(self) -> None:
        """Forgets dequantized copies."""
        self._dense.clear()
