"""From a quantized checkpoint to `model.pte` and the constants of the host; audited as written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.child import Emit
from exporter.decoder.spec import DecoderSpec
from exporter.decoder.weight_names import WeightKind, decoder_weights
from exporter.errors import GateFailed
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized
from exporter.targets.base import Delegation, LowerOutcome
from exporter.targets.executorch.host import HostLayout
from exporter.targets.executorch.vulkan.names import HOST_FILE, METHOD, PROGRAM_FILE
from exporter.targets.executorch.vulkan.program import ProgramFigures, read_program, write_program
from exporter.targets.executorch.vulkan.trace import traced_method

LINEAR, LOOKUP = "et_vk.linear_q4gsw.default", "et_vk.embedding_q4gsw.default"
FLOAT_PRODUCTS = ("aten.linear", "aten.addmm", "aten.mm")


@dataclass(frozen=True)
class VulkanFigures:
    """What the report's artifact section says of this target alone."""

    operators_inside: dict[str, int]
    operators_outside: dict[str, int]


def lower_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Entry point of the child process; see `VulkanTarget.lower` for the arguments."""
    decoder, folder = load_quantized(Path(arguments["quantized"])), Path(arguments["artifact"])
    write_program(traced_method(decoder), folder / PROGRAM_FILE, decoder.kv_format.bits == 16)
    HostLayout(decoder.context, decoder.chunk, decoder.spec.vocab_size, 0, False).write(folder / HOST_FILE)
    return asdict(_outcome(decoder, folder))


def _outcome(decoder: QuantizedDecoder, folder: Path) -> LowerOutcome:
    """Read back from the written file. Raises GateFailed when a product is not one of INT4 groups."""
    figures = read_program(folder / PROGRAM_FILE)
    audit_products(decoder.spec, figures)
    inside, outside = sum(figures.operators_inside.values()), sum(figures.operators_outside.values())
    names = tuple(figures.operators_outside)
    delegation = Delegation(inside / max(1, inside + outside), {METHOD: figures.delegates}, names)
    return LowerOutcome(
        shipped_files=(PROGRAM_FILE, HOST_FILE),
        weight_bytes=(folder / PROGRAM_FILE).stat().st_size,
        delegation=delegation,
        kv_bytes_total=sum(cache.bytes for cache in figures.caches),
        slots_per_layer=tuple(cache.slots for cache in figures.caches[::2]),
        notes=asdict(VulkanFigures(figures.operators_inside, figures.operators_outside)),
        requirements={
            "executorch": "1.5.1",
            "backends": ["VulkanBackend"],
            "operators": list(figures.operators_outside),
        },
    )


def audit_products(spec: DecoderSpec, figures: ProgramFigures) -> None:
    """Each product of activations with weights must be one of INT4 groups, and the lookup one of INT4 rows: the delegate would take
    unpacked float matrices too, which are eight times as large."""
    matrices = sum(weight.kind is WeightKind.MATRIX for weight in decoder_weights(spec))
    inside = figures.operators_inside
    found, lookups = inside.get(LINEAR, 0), inside.get(LOOKUP, 0)
    unpacked = [name for name in inside if name.startswith(FLOAT_PRODUCTS)]
    if unpacked or lookups != 1 or not len(spec.layers) < found <= matrices + 1:
        where = f"the delegate has {found} products of INT4 groups, {lookups} lookups of INT4 rows, and {unpacked or 'none'} of floats"
        raise GateFailed(where, "report it with the model's config.json")
