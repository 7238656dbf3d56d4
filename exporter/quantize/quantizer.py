"""Quantizes a whole checkpoint in one pass over the calibration text, with bounded memory: blocks of rows in full
precision.

A matrix is quantized at the moment the decoder first multiplies by it, and the pass goes on with what became of it. So GPTQ sees
inputs as everything before them, already quantized, produces them, and no token is computed twice. The embedding table comes
last, with the inputs of the output head when the two are tied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from exporter.decoder.forward import decode_embedding, decode_final_norm, decode_layer
from exporter.decoder.sequence_ops import Hooks, ObserveAttention, SequenceOps
from exporter.decoder.spec import DecoderSpec, ExpertsSpec
from exporter.decoder.weight_names import (
    EMBEDDING,
    HEAD,
    WeightKind,
    WeightSpec,
    embedding_weights,
    head_name,
    head_weights,
    layer_weights,
    same_input,
)
from exporter.decoder.weights import DecoderWeights, WeightStore, row_blocks
from exporter.quantize.expert_rows import calibration_rows, filled_up
from exporter.quantize.formats import RoundingMethod, WeightFormat, WeightSettings
from exporter.quantize.gptq import GptqRounder
from exporter.quantize.int4 import QuantizedMatrix, join_rows, quantize_nearest, split_rows
from exporter.quantize.palette import quantize_to_palettes

GPTQ_ELEMENTS = 1 << 25
"""GPTQ works column by column on so many elements at a time: enough rows for fast columns, and a table never lies in memory whole."""

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


@dataclass(frozen=True)
class _Stack:
    """Matrices of a checkpoint with a common input, read as one: the first on top."""

    source: WeightStore
    rows: dict[str, int]

    def read(self, wanted: slice) -> torch.Tensor:
        """float32 [rows, in]."""
        parts, start = [], 0
        for name, count in self.rows.items():
            first, last = max(wanted.start - start, 0), min(wanted.stop - start, count)
            if first < last:
                parts.append(self.source.rows(name, slice(first, last)))
            start += count
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class _LayerwiseQuantizer:
    """Keeps the hidden states of all calibration windows and what is quantized already; and the embeddings, if layers read them."""

    def __init__(
        self, spec: DecoderSpec, source: WeightStore, settings: WeightSettings, observe: ObserveAttention | None
    ) -> None:
        self.spec, self.source, self.settings, self.observe = spec, source, settings, observe
        self.weights = DecoderWeights({}, {}, kept_bytes=0)
        self.embedded = torch.empty(0)

    def run(self, windows: Sequence[Sequence[int]], report: Report) -> DecoderWeights:
        length = len(windows[0])
        hidden = decode_embedding(SequenceOps(self.source, length), self.spec, torch.tensor(windows).flatten())
        self.embedded = hidden if any(layer.shared is not None for layer in self.spec.layers) else hidden[:0]
        self._keep_vectors(embedding_weights(self.spec))
        for index in range(len(self.spec.layers)):
            hidden = self._quantize_layer(index, hidden, length)
            report(index + 1, len(self.spec.layers))
        self._keep_vectors(head_weights(self.spec))
        self._quantize_tables(decode_final_norm(SequenceOps(self.weights, length), self.spec, hidden))
        return DecoderWeights(self.weights.matrices, self.weights.vectors)

    def _keep_vectors(self, weights: Sequence[WeightSpec]) -> None:
        vectors = [weight.name for weight in weights if weight.kind is WeightKind.VECTOR]
        self.weights.vectors.update({name: self.source.dense(name) for name in vectors})

    def _quantize_layer(self, index: int, hidden: torch.Tensor, length: int) -> torch.Tensor:
        """Quantizes one layer given its inputs [N * S, D]; returns its outputs with quantized weights."""
        weights, matrices = layer_weights(self.spec, index), self.weights.matrices
        shapes = {weight.name: weight.shape for weight in weights}
        self._keep_vectors(weights)

        def quantize(leader: str, inputs: torch.Tensor) -> None:
            if leader in matrices:
                return
            rows = {name: shapes[name][0] for name in (leader, *same_input(leader))}
            whole = self._quantize(rows, inputs, self.settings.matrix_format())
            matrices.update(zip(rows, split_rows(whole, list(rows.values())), strict=True))

        def quantize_experts(prefix: str, block: ExpertsSpec, value: torch.Tensor, chosen: torch.Tensor) -> None:
            plain = SequenceOps(self.weights, length)
            for name, own, others in calibration_rows(prefix, block, value, chosen):
                quantize(f"{name}.gate", filled_up(own, others))
                inner = plain.expert_inner(torch.cat((own, others)), name, block)
                quantize(f"{name}.down", filled_up(inner[: len(own)], inner[len(own) :]))

        hooks = Hooks(quantize, self.observe, quantize_experts)
        return decode_layer(SequenceOps(self.weights, length, hooks), self.spec, index, hidden, self.embedded)

    def _quantize_tables(self, normed: torch.Tensor) -> None:
        """`normed` is what the head reads: float32 [N * S, D]."""
        for name in _tables(self.spec):
            inputs = normed if name == head_name(self.spec) else None
            weight_format = self.settings.table_format(name, self.spec)
            self.weights.matrices[name] = self._quantize({name: self.spec.vocab_size}, inputs, weight_format)

    def _quantize(
        self, rows: dict[str, int], inputs: torch.Tensor | None, weight_format: WeightFormat
    ) -> QuantizedMatrix:
        """Named matrices stacked, given the inputs [N * S, in] that they will be multiplied by, if they are known."""
        stack, total, method = _Stack(self.source, rows), sum(rows.values()), self.settings.method
        columns, step = stack.read(slice(0, 1)).shape[1], weight_format.palette_rows or 1
        if method is RoundingMethod.GPTQ and inputs is not None:
            rounder = GptqRounder(covariance(inputs), weight_format, self.settings.damping)
            blocks = row_blocks(total, columns, GPTQ_ELEMENTS, step)
            return join_rows([rounder.quantize(stack.read(part)) for part in blocks])
        search = method is not RoundingMethod.RTN
        importance = inputs.square().sum(0) if search and inputs is not None else None
        blocks = row_blocks(total, columns, multiple=step)
        return join_rows([_nearest(stack.read(part), weight_format, search, importance) for part in blocks])


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
