"""From a quantized checkpoint to `model.onnx`, its data file, and the constants of the host."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporter.child import Emit
from exporter.decoder.forward import decode_chunk
from exporter.errors import GateFailed
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized
from exporter.recipe import OnnxSection
from exporter.targets.base import LowerOutcome
from exporter.targets.onnx.graph import SMALLEST_EXTERNAL_BYTES
from exporter.targets.onnx.host import HostLayout
from exporter.targets.onnx.names import DATA_FILE, GRAPH_FILE, HOST_FILE, PAST, STATE
from exporter.targets.onnx.ops import OnnxOps


@dataclass(frozen=True)
class OnnxFigures:
    """What the report's artifact section says of this target alone."""

    operators: dict[str, int]
    graph_bytes: int
    duplicate_bytes: int


def lower_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Entry point of the child process; see `OnnxTarget.lower` for the arguments."""
    decoder, folder = load_quantized(Path(arguments["quantized"])), Path(arguments["artifact"])
    settings = OnnxSection.model_validate(arguments["settings"])
    ops = OnnxOps(
        decoder.spec,
        decoder.weights,
        decoder.layout,
        decoder.kv_format,
        decoder.kv_constants,
        settings,
    )
    ops.finish(decode_chunk(ops, decoder.spec, ops.token_ids))
    ops.graph.save(folder / GRAPH_FILE)
    rings = {layer.name: layer for layer in decoder.layout if layer.slots}
    host = HostLayout(decoder.context, decoder.chunk, decoder.spec.vocab_size, settings.threads, rings)
    host.write(folder / HOST_FILE)
    return asdict(_outcome(decoder, folder))


def _outcome(decoder: QuantizedDecoder, folder: Path) -> LowerOutcome:
    """Read back from the written files."""
    model = ir.load(folder / GRAPH_FILE)
    operators = Counter(f"{node.domain or 'ai.onnx'}::{node.op_type}" for node in model.graph)
    slots = {f"slots.{layer.name}": layer.slots for layer in decoder.layout}
    caches, states = (_inputs(model, kind) for kind in (PAST, STATE))
    duplicates = _duplicate_bytes(model)
    if duplicates:
        raise GateFailed(f"{DATA_FILE} stores {duplicates} bytes twice", "report it with the model's config.json")
    figures = OnnxFigures(dict(sorted(operators.items())), (folder / GRAPH_FILE).stat().st_size, duplicates)
    return LowerOutcome(
        shipped_files=(GRAPH_FILE, DATA_FILE, HOST_FILE),
        weight_bytes=(folder / DATA_FILE).stat().st_size,
        delegation=None,
        kv_bytes_total=sum(_bytes(value, slots) for value in caches),
        slots_per_layer=tuple(_slots(caches, layer, slots) for layer in range(len(decoder.layout))),
        state_bytes_total=sum(_bytes(value, slots) for value in states),
        notes=asdict(figures),
        requirements={
            "opsets": dict(model.opset_imports),
            "contrib_operators": sorted(name for name in operators if not name.startswith("ai.onnx")),
        },
    )


def _inputs(model: ir.Model, kind: str) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name and value.name.startswith(f"{kind}.")]


def _slots(caches: list[ir.Value], layer: int, slots: dict[str, int]) -> int:
    """Slots of a layer as its keys have them; none where there are no keys."""
    name = f"{PAST}.layers.{layer}.keys"
    keys = next((value for value in caches if value.name == name), None)
    if keys is None or keys.shape is None:
        return 0
    return slots[str(next(size for size in keys.shape if not isinstance(size, int)))]


def _bytes(value: ir.Value, slots: dict[str, int]) -> int:
    """Bytes of a cache input once its open axis has all its slots."""
    assert value.shape is not None and value.dtype is not None
    count = 1
    for size in value.shape:
        count *= size if isinstance(size, int) else slots[str(size)]
    return int(count * value.dtype.itemsize)


def _duplicate_bytes(model: ir.Model) -> int:
    """Bytes of quantized matrices whose codes another one has already. Vectors may be equal: norms that were never trained are."""
    seen: set[str] = set()
    duplicates = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype is not ir.DataType.UINT8 or tensor.nbytes < SMALLEST_EXTERNAL_BYTES:
            continue
        digest = hashlib.sha256(tensor.tobytes()).hexdigest()
        duplicates += tensor.nbytes if digest in seen else 0
        seen.add(digest)
    return duplicates
