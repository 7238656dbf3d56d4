"""Quantized matrices as constants that Core ML keeps compressed. Arrays are made once and shared by all functions of a program.

INT4 and INT8: `constexpr_blockwise_shift_scale` with the codes as they are and fp16 scales. MIL wants whole blocks, so a remainder group
is filled with zero codes, and the input that meets them with zeros.

Palettes: `constexpr_lut_to_dense`, one table of 16 numbers for each group of rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from coremltools.converters.mil.mil.types.type_int import np_int4_dtype, np_uint4_dtype

from exporter.decoder.weights import DecoderWeights
from exporter.quantize.int4 import QuantizedMatrix
from exporter.targets.coreml.graph import FunctionGraph, Value
from exporter.targets.coreml.layout import Layout
from exporter.targets.coreml.names import label


@dataclass(frozen=True)
class MatrixArrays:
    """The constants of one matrix, by the names of the operator's inputs: codes [out, padded in] and fp16 scales [out, groups], or
    indices [out, in] and fp16 tables [groups of rows, 1, 16, 1]. Where a convolution reads them, two axes of size 1 follow the columns."""

    operator: str
    constants: dict[str, np.ndarray]


@dataclass
class StoredWeights:
    """All weights of a decoder as arrays and, in a graph, as values."""

    weights: DecoderWeights
    layout: Layout
    _arrays: dict[str, MatrixArrays] = field(default_factory=dict)

    def matrix(self, graph: FunctionGraph, name: str) -> Value:
        """fp16 [out, padded in], or [out, padded in, 1, 1] for convolutions; one value per graph, whoever asks."""
        known = graph.shared.get(name)
        if known is None:
            arrays = self._matrix_arrays(name)
            stored = {part: graph.constant(f"{name}.{part}", array) for part, array in arrays.constants.items()}
            known = graph.node(arrays.operator, label(name), **stored)
            graph.shared[name] = known
        return known

    def vector(self, name: str) -> np.ndarray:
        """float32 [n]."""
        return self.weights.dense(name).numpy()

    def padded_columns(self, name: str) -> int:
        """Columns of the stored matrix, filled to whole groups."""
        matrix = self.weights.quantized(name)
        if matrix.palettes is not None:
            return matrix.in_features
        size = min(matrix.format.group_size, matrix.in_features)
        return -(-matrix.in_features // size) * size

    def _matrix_arrays(self, name: str) -> MatrixArrays:
        if name not in self._arrays:
            matrix, axes = self.weights.quantized(name), (2, 3) if self.layout.channels_first else ()
            if matrix.palettes is None:
                self._arrays[name] = _scaled(matrix, self.padded_columns(name), axes)
            else:
                self._arrays[name] = _palettized(matrix, matrix.palettes, axes)
        return self._arrays[name]


def _scaled(matrix: QuantizedMatrix, columns: int, axes: tuple[int, ...]) -> MatrixArrays:
    codes = torch.nn.functional.pad(matrix.codes(), (0, columns - matrix.in_features)).numpy()
    if matrix.format.bits == 4:
        codes = codes.astype(np_int4_dtype)
    constants = {"data": codes, "scale": half_scales(matrix)}
    expanded = {part: np.expand_dims(array, axes) for part, array in constants.items()}
    return MatrixArrays("constexpr_blockwise_shift_scale", expanded)


def _palettized(matrix: QuantizedMatrix, palettes: torch.Tensor, axes: tuple[int, ...]) -> MatrixArrays:
    indices = np.expand_dims(matrix.codes().numpy().view(np.uint8).astype(np_uint4_dtype), axes)
    tables = np.expand_dims(palettes.half().numpy()[:, None, :, None], axes)
    return MatrixArrays("constexpr_lut_to_dense", {"indices": indices, "lut": tables})


def half_scales(matrix: QuantizedMatrix) -> np.ndarray:
    """float16 [out, groups], exact: scales are chosen in fp16, or as LPBQ products that fp16 holds."""
    return matrix.scales.half().numpy()
