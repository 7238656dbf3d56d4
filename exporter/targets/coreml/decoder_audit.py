"""What a saved package of a decoder must be. coremltools can save a program that lost a write to a state, or that stores a matrix
twice, without a word; so what was saved is counted and compared with what the decoder needs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from exporter.decoder.spec import DecoderSpec
from exporter.decoder.weight_names import WeightKind, decoder_weights, shared_weights
from exporter.errors import GateFailed
from exporter.quantize.formats import CODES_PER_LANE
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.coreml.audit import (
    Blob,
    blobs,
    compressed_constants,
    duplicates,
    operator_histogram,
    stale_state_reads,
    state_writes,
)
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.interpreter.program import Function
from exporter.targets.coreml.recurrent_state import is_recurrent

PRODUCTS = ("linear", "conv")
SMALLEST_MATRIX_BYTES = 1024
"""Smaller equal blobs are vectors and tables of positions: norms that were never trained are equal."""


@dataclass(frozen=True)
class CoreMlFigures:
    """What the report's artifact section says of this target alone."""

    operators: dict[str, int]
    state_writes_per_call: int
    graph_bytes: int
    blobs: int
    blobs_of_all_functions: int
    duplicate_bytes: int


@dataclass(frozen=True)
class StateFigures:
    """Cache and recurrent states as the package declares them."""

    cache_bytes: int
    recurrent_bytes: int
    slots_per_layer: tuple[int, ...]


def audit_decoder(path: Path, decoder: QuantizedDecoder) -> tuple[CoreMlFigures, StateFigures]:
    """Figures of a package. Raises GateFailed naming every way in which it is not the decoder."""
    package = Package.open(path)
    functions, found = package.program.functions, blobs(package)
    first = next(iter(functions.values()))
    problems = [problem for function in functions.values() for problem in function_problems(function, decoder)]
    twice = duplicate_matrix_bytes(found)
    if twice:
        problems.append(f"{twice} bytes of matrices are stored twice")
    if any(function.states != first.states for function in functions.values()):
        problems.append("functions differ in their states")
    if problems:
        raise GateFailed(f"{path.name}: {'; '.join(problems)}", "report it with the model's config.json")
    figures = CoreMlFigures(
        {
            f"{name}::{operator}": count
            for name, function in functions.items()
            for operator, count in sorted(operator_histogram(function).items())
        },
        sum(state_writes(first).values()),
        package.model_file.stat().st_size,
        len(found),
        sum(set(blob.functions) == set(functions) for blob in found),
        twice,
    )
    slots = tuple(_slots(first, index, decoder) for index in range(len(decoder.spec.layers)))
    parts = Counter[bool]()
    for name, kind in first.states.items():
        parts[is_recurrent(name)] += kind.bytes
    return figures, StateFigures(parts[False], parts[True], slots)


def function_problems(function: Function, decoder: QuantizedDecoder) -> list[str]:
    """Every state is written once and never used after it is out of date; every matrix is compressed, and multiplies once, or once for
    each layer that shares it."""
    problems = []
    wrong = [name for name, count in state_writes(function).items() if count != 1]
    if wrong:
        problems.append(f"{function.name} does not write once to {', '.join(wrong)}")
    stale = stale_state_reads(function)
    if stale:
        problems.append(f"{function.name} uses {', '.join(stale)} as it was before the write")
    weights = decoder_weights(decoder.spec)
    matrices = sum(weight.kind is WeightKind.MATRIX for weight in weights)
    tables = sum(weight.kind is WeightKind.TABLE for weight in weights)
    histogram = operator_histogram(function)
    products = sum(histogram.get(name, 0) for name in PRODUCTS)
    wanted = product_count(decoder.spec)
    if products != wanted:
        problems.append(f"{function.name} has {products} products with matrices, the decoder {wanted}")
    compressed = compressed_constants(function)
    if len(compressed) != matrices + tables:
        problems.append(f"{function.name} compresses {len(compressed)} constants, the decoder {matrices + tables}")
    exploded = [item.name for item in compressed if item.exploded]
    if exploded:
        problems.append(f"{', '.join(exploded)} are larger than uncompressed")
    return problems


def product_count(spec: DecoderSpec) -> int:
    """Products with matrices in a call, the logits among them. The weights of a shared block are listed once, for its first layer."""
    uses, listed = list(decoder_weights(spec)), set[int]()
    for layer in spec.layers:
        if layer.shared is None:
            continue
        if layer.shared.number in listed:
            uses += shared_weights(layer, layer.shared, spec.hidden_size)
        listed.add(layer.shared.number)
    return 1 + sum(weight.kind is WeightKind.MATRIX for weight in uses)


def duplicate_matrix_bytes(found: list[Blob]) -> int:
    """Bytes of codes and palettes that another blob has already."""
    matrices = [blob for blob in found if blob.dtype.bits <= 8 and blob.bytes >= SMALLEST_MATRIX_BYTES]
    return sum(group[0].bytes * (len(group) - 1) for group in duplicates(matrices))


def _slots(function: Function, layer: int, decoder: QuantizedDecoder) -> int:
    """Slots of a layer as the state of its keys has them: numbers over numbers per slot. None without attention."""
    attention = decoder.spec.layers[layer].attention
    if attention is None:
        return 0
    shape = function.states[f"layers_{layer}_keys"].shape
    width = attention.head_dim
    if decoder.kv_format.half_lanes:
        width = math.ceil(width / CODES_PER_LANE)
    return math.prod(size or 0 for size in shape) // (attention.kv_heads * width)
