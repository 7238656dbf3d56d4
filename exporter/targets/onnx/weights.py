"""Quantized matrices in the layout of com.microsoft::MatMulNBits and GatherBlockQuantized.

Both store unsigned codes with an implied zero point of half the range: INT4 codes gain 8, INT8 codes 128. Rows are cut into blocks
along the input; a last block that is not full is padded with zeros. The scales are fp16 and cast to float when a session loads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from exporter.quantize.int4 import QuantizedMatrix, pack_nibbles
from exporter.targets.onnx.graph import MICROSOFT, GraphBuilder, Value

INT8_BLOCK = 128
"""An INT8 row has one scale; the operators want blocks of a power of two, so that scale is repeated."""

ACCURACY_LEVELS = {32: 1, 8: 4}
"""MatMulNBits' attribute accuracy_level for activations of so many bits."""


@dataclass(frozen=True)
class Blocks:
    """Sizes of one stored matrix [rows, columns]."""

    rows: int
    columns: int
    bits: int
    size: int

    @staticmethod
    def of(matrices: list[QuantizedMatrix]) -> Blocks:
        first = matrices[0]
        size = first.format.group_size if first.format.bits == 4 else INT8_BLOCK
        return Blocks(sum(matrix.out_features for matrix in matrices), first.in_features, first.format.bits, size)

    @property
    def count(self) -> int:
        return math.ceil(self.columns / self.size)

    @property
    def bytes_per_block(self) -> int:
        return self.size * self.bits // 8

    @property
    def padded_columns(self) -> int:
        return self.count * self.size


class StoredMatrix:
    """Codes and scales of one matrix, or of several with a common input one above the other, as constants of a graph."""

    def __init__(self, graph: GraphBuilder, name: str, matrices: list[QuantizedMatrix], activation_bits: int) -> None:
        self.graph, self.name, self.blocks = graph, name, Blocks.of(matrices)
        self._accuracy_level = ACCURACY_LEVELS[activation_bits]
        blocks = self.blocks
        shape = (blocks.rows, blocks.count, blocks.bytes_per_block)
        self.codes = graph.deferred(
            f"{name}.codes",
            lambda: np.concatenate([block_codes(matrix, blocks) for matrix in matrices]),
            ir.DataType.UINT8,
            shape,
        )
        stored = graph.constant(f"{name}.scales", np.concatenate([block_scales(matrix, blocks) for matrix in matrices]))
        self.scales = graph.node("Cast", stored, to=ir.DataType.FLOAT, name=f"{name}.scales.float")

    def multiply(self, value: Value, name: str) -> Value:
        """[..., columns] -> [..., rows]."""
        return self.graph.node(
            "MatMulNBits",
            value,
            self.codes,
            self.scales,
            domain=MICROSOFT,
            name=name,
            N=self.blocks.rows,
            K=self.blocks.columns,
            bits=self.blocks.bits,
            block_size=self.blocks.size,
            accuracy_level=self._accuracy_level,
        )

    def rows(self, index: Value) -> Value:
        """Dequantized rows: int64 [1, S] -> float [1, S, columns]. It reads the same constants as `multiply`."""
        flat = self.graph.node(
            "Reshape", self.codes, self.graph.integers(self.blocks.rows, -1), name=f"{self.name}.rows"
        )
        found = self.graph.node(
            "GatherBlockQuantized",
            flat,
            index,
            self.scales,
            domain=MICROSOFT,
            bits=self.blocks.bits,
            block_size=self.blocks.size,
            gather_axis=0,
            quantize_axis=1,
        )
        if self.blocks.padded_columns == self.blocks.columns:
            return found
        numbers = self.graph.integers
        return self.graph.node("Slice", found, numbers(0), numbers(self.blocks.columns), numbers(2))


def block_codes(matrix: QuantizedMatrix, blocks: Blocks) -> np.ndarray:
    """uint8 [rows, blocks, bytes per block]; low nibble first."""
    padding = blocks.padded_columns - blocks.columns
    if blocks.bits == 8:
        codes = (torch.nn.functional.pad(matrix.codes(), (0, padding)).short() + 128).to(torch.uint8)
    elif padding or blocks.columns % 2:
        codes = pack_nibbles(torch.nn.functional.pad(matrix.codes(), (0, padding)) + 8)
    else:
        codes = matrix.packed ^ 0x88  # adding 8 to a two's complement nibble flips its highest bit
    return codes.view(matrix.out_features, blocks.count, blocks.bytes_per_block).numpy()


def block_scales(matrix: QuantizedMatrix, blocks: Blocks) -> np.ndarray:
    """float16 [rows, blocks], exact: scales are chosen in fp16, or as LPBQ products that fp16 holds."""
    if blocks.bits == 8:
        return matrix.scales.half().expand(-1, blocks.count).contiguous().numpy()
    return matrix.scales.half().numpy()
