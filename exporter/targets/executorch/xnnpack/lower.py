"""From a quantized checkpoint to `model.pte` and the constants of the host; audited as written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.child import Emit
from exporter.decoder.spec import SHARED_INPUTS, DecoderSpec, WeightKind, decoder_weights
from exporter.errors import GateFailed
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized
from exporter.recipe import ExecutorchSection
from exporter.targets.base import Delegation, LowerOutcome
from exporter.targets.executorch.xnnpack.host import HostLayout
from exporter.targets.executorch.xnnpack.names import DECODE, HOST_FILE, PROGRAM_FILE
from exporter.targets.executorch.xnnpack.program import MethodFigures, read_methods, write_program
from exporter.targets.executorch.xnnpack.trace import traced_methods


@dataclass(frozen=True)
class ExecutorchFigures:
    """What the report's artifact section says of this target alone."""

    operators_outside: dict[str, dict[str, int]]
    arena_bytes_per_method: dict[str, int]


def lower_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Entry point of the child process; see `XnnpackTarget.lower` for the arguments."""
    decoder, folder = load_quantized(Path(arguments["quantized"])), Path(arguments["artifact"])
    settings = ExecutorchSection.model_validate(arguments["settings"])
    write_program(traced_methods(decoder), folder / PROGRAM_FILE)
    HostLayout(decoder.context, decoder.chunk, decoder.spec.vocab_size, settings.threads).write(folder / HOST_FILE)
    return asdict(_outcome(decoder, folder))


def _outcome(decoder: QuantizedDecoder, folder: Path) -> LowerOutcome:
    """Read back from the written file. Raises GateFailed when a product is not XNNPACK's."""
    methods = read_methods(folder / PROGRAM_FILE)
    _audit_products(decoder.spec, methods)
    caches = methods[DECODE].caches
    figures = ExecutorchFigures(
        {name: method.operators for name, method in methods.items()},
        {name: method.arena_bytes for name, method in methods.items()},
    )
    slots = {cache.layer: cache.slots for cache in caches}
    return LowerOutcome(
        shipped_files=(PROGRAM_FILE, HOST_FILE),
        weight_bytes=(folder / PROGRAM_FILE).stat().st_size,
        delegation=_delegation(methods),
        kv_bytes_total=sum(cache.bytes for cache in caches),
        slots_per_layer=tuple(slots[layer] for layer in sorted(slots)),
        notes=asdict(figures),
        requirements={
            "executorch": "1.5.1",
            "backends": ["XnnpackBackend"],
            "operators": sorted({name for method in methods.values() for name in method.operators}),
        },
    )


def _delegation(methods: dict[str, MethodFigures]) -> Delegation:
    """XNNPACK has one delegate for every product; what else runs is meant to run outside, and was audited."""
    inside = sum(method.delegate_calls for method in methods.values())
    outside = sum(sum(method.operators.values()) for method in methods.values())
    per_method = {name: method.delegate_calls for name, method in methods.items()}
    return Delegation(inside / (inside + outside), per_method, (), one_per_method=False)


def _audit_products(spec: DecoderSpec, methods: dict[str, MethodFigures]) -> None:
    """Each product of activations with weights must be a delegate, and no method may hold another."""
    expected = product_count(spec)
    for name, method in methods.items():
        products = [operator for operator in method.operators if operator.startswith(("aten::linear", "aten::addmm", "aten::mm"))]
        if products or method.delegate_calls != expected:
            raise GateFailed(
                f"{name} calls XNNPACK {method.delegate_calls} times, not {expected}, and multiplies outside by {products}",
                "report it with the model's config.json",
            )


def product_count(spec: DecoderSpec) -> int:
    """Products of activations with weights: one for the matrices of a shared input, and the head's."""
    matrices = [weight.name for weight in decoder_weights(spec) if weight.kind is WeightKind.MATRIX]
    names = {name.split(".", 2)[-1]: None for name in matrices}
    leaders = [name for name in matrices if SHARED_INPUTS.get(name.split(".", 2)[-1]) not in names]
    return len(leaders) + 1
