"""From a quantized checkpoint to `model.pte` and the constants of the host; audited as written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.child import Emit
from exporter.decoder.spec import DecoderSpec
from exporter.decoder.weight_names import EMBEDDING, WeightKind, decoder_weights, is_routed_matrix, same_input
from exporter.errors import GateFailed
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized
from exporter.recipe import ExecutorchSection
from exporter.targets.base import Delegation, LowerOutcome
from exporter.targets.executorch.host import HostLayout
from exporter.targets.executorch.xnnpack.aliasing import SMALLEST_BYTES, Aliasing, alias_equal_segments
from exporter.targets.executorch.xnnpack.driver import open_driver
from exporter.targets.executorch.xnnpack.names import HELD, HOST_FILE, METHOD, PROGRAM_FILE, STATE_COPIES
from exporter.targets.executorch.xnnpack.program import MethodFigures, read_methods, write_program
from exporter.targets.executorch.xnnpack.trace import traced_methods

STRAYS = (
    "aten::linear",
    "aten::addmm",
    "aten::mm",
    "quantized_decomposed::choose_qparams",
    "quantized_decomposed::dequantize",
)
"""What a product begins or ends with where no delegate took it."""


@dataclass(frozen=True)
class ExecutorchFigures:
    """What the report's artifact section says of this target alone. `bytes_before_aliasing`: the program with a second copy of a tied
    table."""

    operators_outside: dict[str, dict[str, int]]
    arena_bytes_per_method: dict[str, int]
    bytes_before_aliasing: int


def lower_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Entry point of the child process; see `XnnpackTarget.lower` for the arguments."""
    decoder, folder = load_quantized(Path(arguments["quantized"])), Path(arguments["artifact"])
    settings = ExecutorchSection.model_validate(arguments["settings"])
    path = folder / PROGRAM_FILE
    write_program(traced_methods(decoder, settings), path)
    methods = read_methods(path)
    own = any(name.startswith("slm::") for method in methods.values() for name in method.operators)
    host = HostLayout(decoder.context, decoder.chunk, decoder.spec.vocab_size, settings.threads, own)
    host.write(folder / HOST_FILE)
    before = _few_logits(folder)
    stored = alias_equal_segments(path)
    _audit_aliasing(decoder, settings, stored, before, folder)
    return asdict(_outcome(decoder, folder, settings, methods, stored))


def _few_logits(folder: Path) -> np.ndarray:
    """What a program says to a few tokens: float32 [n, V]."""
    driver = open_driver(folder)
    some = min(3, driver.context - 1)
    return np.concatenate([driver.prefill(list(range(some))), driver.decode(some)[None]])


def _audit_aliasing(
    decoder: QuantizedDecoder, settings: ExecutorchSection, stored: Aliasing, before: np.ndarray, folder: Path
) -> None:
    """Raises GateFailed unless a tied table is stored once, and the file computes what it did with two copies."""
    large = decoder.weights.quantized(EMBEDDING).packed.nbytes >= SMALLEST_BYTES
    tied = decoder.spec.tied_embedding and settings.activation_bits == 8 and large
    step = "report it with the model's config.json"
    if tied and not stored.segments:
        raise GateFailed("the tied table is stored twice: no segment equals the table among the constants", step)
    if stored.segments and not np.array_equal(before, _few_logits(folder)):
        raise GateFailed("the program computes something else once its tied table is stored once", step)


def _outcome(
    decoder: QuantizedDecoder,
    folder: Path,
    settings: ExecutorchSection,
    methods: dict[str, MethodFigures],
    stored: Aliasing,
) -> LowerOutcome:
    """Read back from the written file. Raises GateFailed when a product is not XNNPACK's."""
    audit_products(product_count(decoder.spec), settings, methods)
    caches, states = methods[METHOD].caches, methods[METHOD].states
    figures = ExecutorchFigures(
        {name: method.operators for name, method in methods.items()},
        {name: method.arena_bytes for name, method in methods.items()},
        stored.bytes_with_copies,
    )
    slots = {cache.layer: cache.length for cache in caches}
    return LowerOutcome(
        shipped_files=(PROGRAM_FILE, HOST_FILE),
        weight_bytes=(folder / PROGRAM_FILE).stat().st_size,
        delegation=_delegation(methods),
        kv_bytes_total=sum(cache.bytes for cache in caches),
        slots_per_layer=tuple(slots.get(layer, 0) for layer in range(len(decoder.spec.layers))),
        state_bytes_total=sum(state.bytes for state in states if not state.part.endswith(HELD)) // STATE_COPIES,
        notes=asdict(figures),
        requirements={
            "executorch": "1.5.1",
            "backends": ["XnnpackBackend"] if settings.activation_bits == 8 else [],
            "operators": sorted({name for method in methods.values() for name in method.operators}),
        },
    )


def _delegation(methods: dict[str, MethodFigures]) -> Delegation:
    """XNNPACK has a delegate for every product or for several that hang together; what else runs is meant to, and was audited."""
    inside = sum(method.delegate_calls for method in methods.values())
    outside = sum(sum(method.operators.values()) for method in methods.values())
    per_method = {name: method.delegate_calls for name, method in methods.items()}
    return Delegation(inside / (inside + outside), per_method, (), one_per_method=False)


def audit_products(expected: int, settings: ExecutorchSection, methods: dict[str, MethodFigures]) -> None:
    """Each product of activations with weights must be XNNPACK's, or this project's operator's, and nobody else's. Raises GateFailed.

    Products that read the same activations, or one another's, become one delegate of XNNPACK's: of these there may be fewer.
    """
    for name, method in methods.items():
        own = settings.activation_bits == 32
        count = method.operators.get("slm::linear.out", 0) if own else method.delegate_calls
        others = [operator for operator in method.operators if operator.startswith(STRAYS)]
        fewest = expected if own else 1
        if others or not fewest <= count <= expected:
            where = (
                f"{name} has {count} products of weights where they belong, not {expected}, and beside them {others}"
            )
            raise GateFailed(where, "report it with the model's config.json")


def product_count(spec: DecoderSpec) -> int:
    """Products of activations with weights, but those of experts: one for the matrices that share an input, in every layer that uses
    them, and the head's."""
    matrices = [
        weight.name
        for weight in decoder_weights(spec)
        if weight.kind is WeightKind.MATRIX and not is_routed_matrix(weight)
    ]
    followers = {name for leader in matrices for name in same_input(leader)}
    numbers = [layer.shared.number for layer in spec.layers if layer.shared is not None]
    users = {f"shared.{number}": numbers.count(number) for number in numbers}
    return sum(users.get(".".join(name.split(".")[:2]), 1) for name in matrices if name not in followers) + 1
