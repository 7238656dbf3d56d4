"""Weight stores: where an interpreter finds the numbers behind a weight's canonical name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from exporter.decoder.memory import KEPT_BYTES
from exporter.quantize.int4 import QuantizedMatrix

BLOCK_ELEMENTS = 1 << 20
"""A large matrix is worked off in blocks of rows of about so many elements: what a block needs stays in the processor's cache, and
the allocator hands the same memory out again for the next block."""


class WeightStore(Protocol):
    """Full-precision view of named weights, float32."""

    def dense(self, name: str) -> torch.Tensor:
        """The weight as float32; dequantized where it is stored quantized."""

    def rows(self, name: str, index: torch.Tensor | slice) -> torch.Tensor:
        """Some rows of a matrix or table [out, in], by number, int64 [S], or consecutive ones -> float32 [S, in]."""

    def product(self, value: torch.Tensor, name: str) -> torch.Tensor:
        """[S, in] times the matrix [out, in] transposed -> [S, out], without a float copy of the whole matrix where that is large."""


def row_blocks(rows: int, columns: int, elements: int = BLOCK_ELEMENTS, multiple: int = 1) -> Iterator[slice]:
    """Consecutive slices of `rows` rows, of about `elements` elements each; all but the last have a multiple of `multiple` rows."""
    step = max(1, elements // columns // multiple) * multiple
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def blockwise_product(
    value: torch.Tensor, shape: tuple[int, int], block: Callable[[slice], torch.Tensor]
) -> torch.Tensor:
    """[S, in] times a matrix [out, in] transposed, of which `block` makes some rows at a time -> [S, out]."""
    product = torch.empty(value.shape[0], shape[0])
    for rows in row_blocks(*shape):
        product[:, rows] = value @ block(rows).T
    return product


class DecoderWeights:
    """Weights in memory: quantized matrices and float32 vectors. Float copies are kept once made, up to `kept_bytes` in all."""

    def __init__(
        self,
        matrices: dict[str, QuantizedMatrix],
        vectors: dict[str, torch.Tensor],
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.matrices = matrices
        self.vectors = vectors
        self._dense: dict[str, torch.Tensor] = {}
        self._room = self._kept_bytes = kept_bytes

    def quantized(self, name: str) -> QuantizedMatrix:
        return self.matrices[name]

    def dense(self, name: str) -> torch.Tensor:
        if name in self.vectors:
            return self.vectors[name]
        if name in self._dense:
            return self._dense[name]
        values = self.matrices[name].dequantize()
        if values.nbytes <= self._room:
            self._room -= values.nbytes
            self._dense[name] = values
        return values

    def rows(self, name: str, index: torch.Tensor | slice) -> torch.Tensor:
        return self.vectors[name][index] if name in self.vectors else self.matrices[name].rows(index)

    def product(self, value: torch.Tensor, name: str) -> torch.Tensor:
        matrix = self.matrices.get(name)
        if matrix is None or name in self._dense or 4 * matrix.out_features * matrix.in_features <= self._room:
            return torch.nn.functional.linear(value, self.dense(name))
        return blockwise_product(value, (matrix.out_features, matrix.in_features), matrix.rows)

    def release(self) -> None:
        """Forgets dequantized copies."""
        self._dense.clear()
        self._room = self._kept_bytes
