"""Audits of a saved package. coremltools can save a program that lost a write to a state, or that stores a matrix twice, without a
word; so what was saved is counted and compared with what the decoder needs."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.decoder.spec import WeightKind, decoder_weights
from exporter.errors import GateFailed
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.coreml.interpreter.program import BlobReference, Function, Operation, Program, parse_program
from exporter.targets.coreml.interpreter.storage import WeightFile
from exporter.targets.coreml.names import MODEL_IN_PACKAGE, WEIGHTS_IN_PACKAGE

PRODUCTS = ("linear", "conv")
STEP = "report it with the model's config.json"


@dataclass(frozen=True)
class PackageFigures:
    """What a saved package holds."""

    operators: dict[str, int]
    state_writes: int
    state_bytes: int
    slots_per_layer: tuple[int, ...]
    program_bytes: int
    blobs: int
    duplicate_bytes: int
    specification_version: int

    def notes(self) -> dict[str, Any]:
        """Figures for the report's artifact section."""
        return {
            "operators": self.operators,
            "state_writes_per_call": self.state_writes,
            "graph_bytes": self.program_bytes,
            "blobs": self.blobs,
            "duplicate_bytes": self.duplicate_bytes,
        }


def audit_package(path: Path, decoder: QuantizedDecoder) -> PackageFigures:
    """Figures of a package. Raises GateFailed naming every way in which it is not the decoder."""
    data = (path / MODEL_IN_PACKAGE).read_bytes()
    program = parse_program(data, str(path))
    problems = [problem for function in program.functions.values() for problem in _function_problems(function, decoder)]
    blobs, duplicates = _blobs(program, WeightFile(path / WEIGHTS_IN_PACKAGE))
    if duplicates:
        problems.append(f"{duplicates} bytes of matrices are stored twice")
    first = next(iter(program.functions.values()))
    if any(function.states != first.states for function in program.functions.values()):
        problems.append("functions differ in their states")
    if problems:
        raise GateFailed(f"{path.name}: {'; '.join(problems)}", STEP)
    return PackageFigures(
        {
            f"{name}::{operator}": count
            for name, function in program.functions.items()
            for operator, count in sorted(_operators(function).items())
        },
        _operators(first)["write_state"],
        sum(kind.bytes for kind in first.states.values()),
        tuple(_slots(first, index, decoder) for index in range(len(decoder.spec.layers))),
        len(data),
        blobs,
        duplicates,
        program.specification_version,
    )


def _function_problems(function: Function, decoder: QuantizedDecoder) -> list[str]:
    """Every state is written once, every matrix multiplies once, and every matrix is a compressed constant."""
    problems = []
    writes = Counter(str(item.inputs["input"][0]) for item in function.operations if item.operator == "write_state")
    wrong = [name for name in function.states if writes[name] != 1]
    if wrong:
        problems.append(f"{function.name} does not write once to {', '.join(wrong)}")
    kinds = Counter(weight.kind for weight in decoder_weights(decoder.spec))
    found = _operators(function)
    products = sum(found[name] for name in PRODUCTS)
    expected = kinds[WeightKind.MATRIX] + 1
    if products != expected:
        problems.append(f"{function.name} has {products} products with matrices, the decoder {expected}")
    compressed = sum(count for name, count in found.items() if name.startswith("constexpr_"))
    stored = kinds[WeightKind.MATRIX] + kinds[WeightKind.TABLE]
    if compressed != stored:
        problems.append(
            f"{function.name} has {compressed} compressed constants, the decoder {stored} matrices and tables"
        )
    return problems


def _operators(function: Function) -> Counter[str]:
    return Counter(item.operator for item in function.operations)


def _slots(function: Function, layer: int, decoder: QuantizedDecoder) -> int:
    """Slots of a layer as its keys' state has them: numbers over numbers per slot."""
    attention = decoder.spec.layers[layer].attention
    shape = function.states[f"layers_{layer}_keys"].shape
    lanes = math.ceil(attention.head_dim / 3) if decoder.kv_format.half_lanes else attention.head_dim
    return math.prod(size or 0 for size in shape) // (attention.kv_heads * lanes)


def _blobs(program: Program, weights: WeightFile) -> tuple[int, int]:
    """How many blobs all functions refer to, and the bytes of compressed constants that another blob has already. Vectors may be equal:
    norms that were never trained are."""
    every, compressed = set(), set()
    for function in program.functions.values():
        for item in function.operations:
            every |= _offsets(item)
            if item.operator.startswith("constexpr_"):
                compressed |= {offset for offset in _offsets(item, "data") | _offsets(item, "indices")}
    seen, duplicates = set(), 0
    for offset in sorted(compressed):
        data = weights.data(weights.record(offset))
        digest = hashlib.sha256(data).digest()
        duplicates += len(data) if digest in seen else 0
        seen.add(digest)
    return len(every), duplicates


def _offsets(item: Operation, parameter: str | None = None) -> set[int]:
    """Offsets of the blobs that an operation refers to, or that one of its parameters does."""
    constants = item.constants if parameter is None else item.inputs.get(parameter, ())
    return {constant.offset for constant in constants if isinstance(constant, BlobReference)}
