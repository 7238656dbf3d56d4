"""Quantizes a whole checkpoint in one pass over the calibration text, with bounded memory: one layer in full precision at a time.

A matrix is quantized at the moment the decoder first multiplies by it, and the pass goes on with what became of it. So GPTQ sees
inputs as everything before them, already quantized, produces them, and no token is computed twice. The embedding table comes
last, with the inputs of the output head when the two are tied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from exporter.decoder.eager_ops import normalize
from exporter.decoder.forward import decode_layer
from exporter.decoder.sequence_ops import Hooks, ObserveAttention, SequenceOps
from exporter.decoder.spec import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    SHARED_INPUTS,
    DecoderSpec,
    WeightKind,
    head_name,
    layer_weights,
)
from exporter.decoder.weights import DecoderWeights, WeightStore
from exporter.quantize.formats import RoundingMethod, WeightFormat, WeightSettings
from exporter.quantize.gptq import quantize_gptq
from exporter.quantize.int4 import QuantizedMatrix, quantize_nearest, split_rows
from exporter.quantize.palette import quantize_to_palettes

Report = Callable[[int, int], None]
"""Called with (layers done, layers in all)."""


def quantize_decoder(
    spec: DecoderSpec,
    source: WeightStore,
    settings: WeightSettings,
    windows: Sequence[Sequence[int]],
    observe_attention: ObserveAttention | None = None,
    report: Report = lambda done, total: None,
) -> DecoderWeights:
    """Quantizes every matrix and table of `source`. `windows` are calibration token ids, all of one length; GPTQ and search weigh
    errors by them. `observe_attention` sees what the quantized decoder's attention sees."""
    return _LayerwiseQuantizer(spec, source, settings, observe_attention).run(windows, report)


def _tables(spec: DecoderSpec) -> tuple[str, ...]:
    return (EMBEDDING,) if spec.tied_embedding else (EMBEDDING, HEAD)


class _LayerwiseQuantizer:
    """Keeps the hidden states of all calibration windows and the full-precision weights of one layer."""

    def __init__(
        self, spec: DecoderSpec, source: WeightStore, settings: WeightSettings, observe: ObserveAttention | None
    ) -> None:
        self.spec, self.source, self.settings, self.observe = spec, source, settings, observe
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
        self.vectors.update({weight.name: dense[weight.name] for weight in weights if weight.kind is WeightKind.VECTOR})

        def quantize(leader: str, inputs: torch.Tensor) -> None:
            if leader in self.matrices:
                return
            shared = [prefix + name for name, other in SHARED_INPUTS.items() if prefix + other == leader]
            for name, matrix in self._quantize_stacked([leader, *shared], dense, inputs).items():
                self.matrices[name], dense[name] = matrix, matrix.dequantize()

        ops = SequenceOps(DecoderWeights({}, dense), length, Hooks(linear_input=quantize, attention=self.observe))
        return decode_layer(ops, self.spec, index, hidden)

    def _quantize_stacked(
        self, names: list[str], dense: dict[str, torch.Tensor], inputs: torch.Tensor
    ) -> dict[str, QuantizedMatrix]:
        """Matrices with a common input in one go."""
        stacked = torch.cat([dense[name] for name in names])
        matrix = self._quantize(stacked, inputs, self.settings.matrix_format())
        return dict(zip(names, split_rows(matrix, [dense[name].shape[0] for name in names]), strict=True))

    def _quantize_tables(self, table: torch.Tensor, hidden: torch.Tensor) -> None:
        normed = normalize(hidden, self.vectors[FINAL_NORM], self.spec.final_norm)
        for name in _tables(self.spec):
            values = table if name == EMBEDDING else self.source.dense(name)
            weight_format = self.settings.table_format(name, self.spec)
            if name == head_name(self.spec):
                self.matrices[name] = self._quantize(values, normed, weight_format)
            else:
                search = self.settings.method is not RoundingMethod.RTN
                self.matrices[name] = _nearest(values, weight_format, search)

    def _quantize(self, values: torch.Tensor, inputs: torch.Tensor, weight_format: WeightFormat) -> QuantizedMatrix:
        """float32 [out, in] given the inputs [N * S, in] that it will be multiplied by."""
        if self.settings.method is RoundingMethod.RTN:
            return _nearest(values, weight_format, search=False)
        if self.settings.method is RoundingMethod.SEARCH:
            return _nearest(values, weight_format, search=True, importance=inputs.square().sum(0))
        return quantize_gptq(values, covariance(inputs), weight_format, self.settings.damping)


def _nearest(
    values: torch.Tensor, weight_format: WeightFormat, search: bool, importance: torch.Tensor | None = None
) -> QuantizedMatrix:
    """Without error feedback. Palettes are always searched."""
    if weight_format.palette_rows:
        return quantize_to_palettes(values, weight_format, importance)
    return quantize_nearest(values, weight_format, search, importance)


def covariance(inputs: torch.Tensor) -> torch.Tensor:
    """float32 [N * S, in] -> [in, in]. numpy notices that both factors are one matrix and computes half of the product; on one
    thread, because its idle threads would go on spinning beside torch's."""
    rows = inputs.contiguous().numpy()
    with threadpool_limits(1, user_api="blas"):
        return torch.from_numpy(rows.T @ rows)
