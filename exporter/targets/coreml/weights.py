"""Quantized matrices as constants that Core ML keeps compressed. Arrays are made once and shared by all functions of a program.

INT4 and INT8: `constexpr_blockwise_shift_scale` with the codes as they are and fp16 scales. MIL wants whole blocks, so a remainder group
is filled with zero codes, and the input that meets them with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from coremltools.converters.mil.mil.types.type_int import np_int4_dtype

from exporter.decoder.weights import DecoderWeights
from exporter.quantize.int4 import QuantizedMatrix
from exporter.targets.coreml.graph import FunctionGraph, Value, label
from exporter.targets.coreml.layout import Layout


@dataclass(frozen=True)
class MatrixArrays:
    """Codes [out, padded in] and fp16 scales [out, groups], with two axes of size 1 behind them where a convolution reads them."""

    codes: np.ndarray
    scales: np.ndarray


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
            data = graph.constant(f"{name}.codes", arrays.codes)
            scale = graph.constant(f"{name}.scales", arrays.scales)
            known = graph.node("constexpr_blockwise_shift_scale", label(name), data=data, scale=scale)
            graph.shared[name] = known
        return known

    def vector(self, name: str) -> np.ndarray:
        """float32 [n]."""
        return self.weights.dense(name).numpy()

    def padded_columns(self, name: str) -> int:
        """Columns of the stored matrix, filled to whole groups."""
        matrix = self.weights.quantized(name)
        size = min(matrix.format.group_size, matrix.in_features)
        return -(-matrix.in_features // size) * size

    def _matrix_arrays(self, name: str) -> MatrixArrays:
        if name not in self._arrays:
            matrix = self.weights.quantized(name)
            missing = self.padded_columns(name) - matrix.in_features
            codes = torch.nn.functional.pad(matrix.codes(), (0, missing)).numpy()
            scales = half_scales(matrix)
            if matrix.format.bits == 4:
                codes = codes.astype(np_int4_dtype)
            if self.layout.channels_first:
                codes, scales = codes[:, :, None, None], scales[:, :, None, None]
            self._arrays[name] = MatrixArrays(codes, scales)
        return self._arrays[name]


def half_scales(matrix: QuantizedMatrix) -> np.ndarray:
    """float16 [out, groups], exact: scales are chosen in fp16, or as LPBQ products that fp16 holds."""
    return matrix.scales.half().numpy()
