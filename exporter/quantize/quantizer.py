"""Quantizes a whole checkpoint, layer by layer with bounded memory: one layer in full precision at a time.

GPTQ sees each layer's inputs as the layers before it, already quantized, produce them on calibration text. The embedding table
comes last, with the inputs of the output head when the two are tied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from exporter.decoder.eager_ops import normalize
from exporter.decoder.forward import decode_layer
from exporter.decoder.sequence_ops import Hooks, SequenceOps
from exporter.decoder.spec import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    DecoderSpec,
    WeightKind,
    head_name,
    layer_weights,
)
from exporter.decoder.weights import DecoderWeights, WeightStore
from exporter.quantize.formats import RoundingMethod, WeightFormat, WeightSettings
from exporter.quantize.gptq import quantize_gptq
from exporter.quantize.int4 import QuantizedMatrix, quantize_nearest, split_rows

SHARED_INPUTS = {
    "attention.key": "attention.query",
    "attention.value": "attention.query",
    "feed_forward.up": "feed_forward.gate",
}
"""Matrices that read the same input as another one share its covariance."""

Report = Callable[[int, int], None]
"""Called with (layers done, layers in all)."""


def quantize_decoder(
    spec: DecoderSpec,
    source: WeightStore,
    settings: WeightSettings,
    windows: Sequence[Sequence[int]],
    report: Report = lambda done, total: None,
) -> DecoderWeights:
    """Quantizes every matrix and table of `source`. `windows` are calibration token ids; GPTQ and search weigh errors by them."""
    if settings.method is RoundingMethod.RTN:
        return _quantize_blind(spec, source, settings, report)
    return _LayerwiseQuantizer(spec, source, settings).run(windows, report)


def _quantize_blind(spec: DecoderSpec, source: WeightStore, settings: WeightSettings, report: Report) -> DecoderWeights:
    matrices: dict[str, QuantizedMatrix] = {}
    vectors: dict[str, torch.Tensor] = {FINAL_NORM: source.dense(FINAL_NORM)}
    for index in range(len(spec.layers)):
        for weight in layer_weights(spec, index):
            values = source.dense(weight.name)
            if weight.kind is WeightKind.VECTOR:
                vectors[weight.name] = values
            else:
                matrices[weight.name] = quantize_nearest(values, settings.matrix_format())
        report(index + 1, len(spec.layers))
    for name in _tables(spec):
        matrices[name] = quantize_nearest(source.dense(name), settings.table_format(name, spec))
    return DecoderWeights(matrices, vectors)


def _tables(spec: DecoderSpec) -> tuple[str, ...]:
    return (EMBEDDING,) if spec.tied_embedding else (EMBEDDING, HEAD)


class _LayerwiseQuantizer:
    """Keeps the hidden states of all calibration windows and the full-precision weights of one layer."""

    def __init__(self, spec: DecoderSpec, source: WeightStore, settings: WeightSettings) -> None:
        self.spec, self.source, self.settings = spec, source, settings
        self.matrices: dict[str, QuantizedMatrix] = {}
        self.vectors: dict[str, torch.Tensor] = {}

    def run(self, windows: Sequence[Sequence[int]], report: Report) -> DecoderWeights:
        table = self.source.dense(EMBEDDING)
        hidden, length = table[torch.tensor(windows).flatten()], len(windows[0])
        for index in range(len(self.spec.layers)):
            hidden = self._quantize_layer(index, hidden, length)
            report(index + 1, len(self.spec.layers))
        self.vectors[FINAL_NORM] = self.source.dense(FINAL_NORM)
        self._quantize_tables(table, hidden)
        return DecoderWeights(self.matrices, self.vectors)

    def _quantize_layer(self, index: int, hidden: torch.Tensor, length: int) -> torch.Tensor:
        """Quantizes one layer given its inputs [N * S, D]; returns its outputs with quantized weights."""
        weights, prefix = layer_weights(self.spec, index), f"layers.{index}."
        dense = {weight.name: self.source.dense(weight.name) for weight in weights}
        covariances: dict[str, torch.Tensor] = {}

        def observe(name: str, inputs: torch.Tensor) -> None:
            if name.removeprefix(prefix) not in SHARED_INPUTS:
                covariances[name] = inputs.T @ inputs

        store = DecoderWeights({}, dense)
        decode_layer(SequenceOps(store, length, Hooks(linear_input=observe)), self.spec, index, hidden)
        self.vectors.update({weight.name: dense[weight.name] for weight in weights if weight.kind is WeightKind.VECTOR})
        for leader, covariance in covariances.items():
            shared = [prefix + name for name, other in SHARED_INPUTS.items() if prefix + other == leader]
            for name, matrix in self._quantize_stacked([leader, *shared], dense, covariance).items():
                self.matrices[name], dense[name] = matrix, matrix.dequantize()
        return decode_layer(SequenceOps(store, length), self.spec, index, hidden)

    def _quantize_stacked(
        self, names: list[str], dense: dict[str, torch.Tensor], covariance: torch.Tensor
    ) -> dict[str, QuantizedMatrix]:
        """Matrices with a common input in one go."""
        stacked = torch.cat([dense[name] for name in names])
        matrix = self._quantize(stacked, covariance, self.settings.matrix_format())
        return dict(zip(names, split_rows(matrix, [dense[name].shape[0] for name in names]), strict=True))

    def _quantize_tables(self, table: torch.Tensor, hidden: torch.Tensor) -> None:
        normed = normalize(hidden, self.vectors[FINAL_NORM], self.spec.final_norm)
        covariance = normed.T @ normed
        for name in _tables(self.spec):
            values = table if name == EMBEDDING else self.source.dense(name)
            weight_format = self.settings.table_format(name, self.spec)
            if name == head_name(self.spec):
                self.matrices[name] = self._quantize(values, covariance, weight_format)
            else:
                self.matrices[name] = quantize_nearest(values, weight_format, search=True)

    def _quantize(self, values: torch.Tensor, covariance: torch.Tensor, weight_format: WeightFormat) -> QuantizedMatrix:
        if self.settings.method is RoundingMethod.GPTQ:
            return quantize_gptq(values, covariance, weight_format, self.settings.damping)
        return quantize_nearest(values, weight_format, search=True, importance=covariance.diagonal())
