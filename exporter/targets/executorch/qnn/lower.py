"""Lowering, in a child process: build both methods' graphs, calibrate activations, compile, and write the artifact.

The shipped program stores weights once for both methods; the simulator cannot load such a context, so a twin without sharing is
compiled from the same graphs and encodings and is what verification runs.
"""

from __future__ import annotations

import ctypes
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from exporter.child import Emit
from exporter.decoder.cache import LayerCache
from exporter.decoder.forward import decode_chunk
from exporter.decoder.rotary import inverse_frequencies
from exporter.decoder.spec import rotary_settings
from exporter.decoder.weight_names import EMBEDDING
from exporter.errors import GateFailed
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized
from exporter.targets.base import Delegation, LowerOutcome
from exporter.targets.executorch.qnn import sdk
from exporter.targets.executorch.qnn.boundary import mask_name
from exporter.targets.executorch.qnn.encodings import RangeRecorder, choose_encodings, extend_encodings
from exporter.targets.executorch.qnn.evaluate import GraphEvaluator
from exporter.targets.executorch.qnn.graph import Encoding, HtpGraph, Kernel, Storage
from exporter.targets.executorch.qnn.host import HIDDEN, Host, HostLayer, HostLayout
from exporter.targets.executorch.qnn.ops import QnnOps

if TYPE_CHECKING:
    from exporter.targets.executorch.delegate_program import MethodCalls
    from exporter.targets.executorch.qnn.program import CompiledContext

PROGRAM_FILE, HOST_FILE, EMBEDDING_FILE = "model.pte", "host.json", "embedding.safetensors"
PREFILL, DECODE = "prefill", "decode"

SHARED_SIZE_SHARE = 0.75
"""Judged by size: two methods that share weights take little more than half of the bytes of two that do not."""


@dataclass(frozen=True)
class QnnFigures:
    """What the report's artifact section says of this target alone; bytes of contexts, and the compiler's DDR bytes per call."""

    operators_per_method: dict[str, int]
    context_bytes_shipped: int
    context_bytes_unshared: int
    weights_shared_between_methods: bool
    compiler_ddr_bytes: dict[str, dict[str, int]]


_TRAFFIC = re.compile(r"spill_bytes=(\d+)\s+fill_bytes=(\d+)\s+write_total_bytes=(\d+)\s+read_total_bytes=(\d+)")


def build_graphs(decoder: QuantizedDecoder) -> dict[str, HtpGraph]:
    """The graphs of both methods, from the one decoder."""
    return {
        PREFILL: build_graph(PREFILL, decoder, decoder.chunk, decoder.layout),
        DECODE: build_graph(DECODE, decoder, 1, decoder.layout),
    }


def build_graph(name: str, decoder: QuantizedDecoder, chunk: int, layout: tuple[LayerCache, ...]) -> HtpGraph:
    """One method for chunks of `chunk` tokens against caches laid out by `layout`."""
    ops = QnnOps(
        name,
        decoder.spec,
        decoder.weights,
        layout,
        chunk,
        decoder.kv_format,
        decoder.kv_constants,
        hidden_encoding(decoder),
    )
    graph_input: Any = None  # hidden states are an input of the graph: token ids stay on the host
    decode_chunk(ops, decoder.spec, graph_input)
    return ops.graph


def hidden_encoding(decoder: QuantizedDecoder) -> Encoding:
    """16-bit encoding of embedding rows: spans the whole table."""
    matrix = decoder.weights.quantized(EMBEDDING)
    low, high = matrix.format.code_range
    codes = matrix.codes()
    largest = matrix.scales.amax(dim=1)
    return Encoding.of_range(
        float((codes.amin(dim=1).clamp(low, 0) * largest).min()),
        float((codes.amax(dim=1).clamp(0, high) * largest).max()),
    )


def host_layout(decoder: QuantizedDecoder, logits: Encoding) -> HostLayout:
    """Every constant that the host needs."""
    spec, hidden = decoder.spec, hidden_encoding(decoder)
    layers = []
    for layer, cache, constants in zip(spec.layers, decoder.layout, decoder.kv_constants, strict=True):
        layers.append(
            HostLayer(
                cache.slots,
                cache.window,
                cache.sinks,
                mask_name(cache),
                layer.heads.kv_heads,
                layer.heads.head_dim,
                constants.key.zero,
                constants.value.zero,
            )
        )
    frequencies = tuple(step for rotary in rotary_settings(spec) for step in inverse_frequencies(rotary).tolist())
    return HostLayout(
        decoder.context,
        decoder.chunk,
        spec.hidden_size,
        spec.vocab_size,
        hidden.scale,
        hidden.zero_point,
        logits.scale,
        logits.zero_point,
        frequencies,
        decoder.kv_format.bits,
        decoder.weights.quantized(EMBEDDING).format.group_size,
        tuple(layers),
    )


def calibrate_activations(decoder: QuantizedDecoder, windows: list[list[int]], emit: Emit) -> dict[str, Encoding]:
    """Runs calibration windows in float and chooses the encoding of every value, by name, for both methods.

    Each window is one chunk of a graph of its own with an empty cache: the same values under the same names as in the methods'
    graphs, in far fewer and larger products than through the ring.
    """
    length = len(windows[0])
    layout = tuple(LayerCache(2, layer.window, 0) for layer in decoder.layout)
    graph = build_graph("calibration", decoder, length, layout)
    recorder, evaluator = RangeRecorder(graph), GraphEvaluator(graph)
    placeholder = Encoding(Storage.UINT16, 1.0, 0)
    constants = host_layout(replace(decoder, layout=layout), placeholder)

    def row(token_id: int) -> np.ndarray:
        return decoder.weights.rows(EMBEDDING, torch.tensor([token_id]))[0].numpy()

    for done, window in enumerate(windows):
        inputs = Host(constants, row).inputs(window, length)
        codes = {name: torch.from_numpy(array.astype(np.int32)) for name, array in inputs.items()}
        real = {value.name: _real_input(value.fixed, codes[value.name]) for value in graph.inputs}
        evaluator.run(real, recorder.observe)
        emit({"progress": (done + 1) / len(windows)})
    return choose_encodings(graph, recorder)


def _real_input(fixed: Encoding | None, codes: torch.Tensor) -> torch.Tensor:
    """Masks have no encoding yet: hidden positions get a number below every score."""
    if fixed is None:
        return torch.where(codes == HIDDEN, -1e6, 0.0)
    return fixed.dequantize(codes)


@torch.no_grad()
def lower_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Entry point of the child process; see `QnnTarget.lower` for the arguments."""
    sdk.prepare_environment()
    from exporter.targets.executorch.delegate_program import read_calls
    from exporter.targets.executorch.qnn.compile import compile_graphs
    from exporter.targets.executorch.qnn.program import GraphSignature, context_program

    decoder = load_quantized(Path(arguments["quantized"]))
    graphs = build_graphs(decoder)
    encodings = calibrate_activations(decoder, arguments["windows"], emit)
    for graph in graphs.values():
        encodings = extend_encodings(graph, encodings)
    decoder.weights.release()
    sdk.load_libraries()
    methods = list(graphs.values())
    signatures = [GraphSignature.of(graph) for graph in methods]
    artifact, verification, log = (Path(arguments[name]) for name in ("artifact", "verification", "log"))
    _announce("context unshared")
    separate = [compile_graphs([graph], encodings, arguments["soc"], share_weights=False) for graph in methods]
    (verification / PROGRAM_FILE).write_bytes(context_program(signatures, separate))
    _announce("context shared")
    share = bool(arguments["share_weights"])
    shipped = [compile_graphs(methods, encodings, arguments["soc"], share_weights=True)] if share else separate
    (artifact / PROGRAM_FILE).write_bytes(context_program(signatures, shipped))
    _announce("end")
    _write_host_files(decoder, graphs, encodings, artifact)
    figures = _figures(methods, shipped, separate, log)
    calls = read_calls((artifact / PROGRAM_FILE).read_bytes())
    return asdict(_outcome(decoder, methods, calls, figures, (artifact / EMBEDDING_FILE).stat().st_size))


def _outcome(
    decoder: QuantizedDecoder, methods: list[HtpGraph], calls: list[MethodCalls], figures: QnnFigures, table_bytes: int
) -> LowerOutcome:
    caches = [value for value in methods[-1].inputs if value.name.endswith((".keys", ".values"))]
    return LowerOutcome(
        shipped_files=(PROGRAM_FILE, EMBEDDING_FILE, HOST_FILE),
        weight_bytes=_kernel_bytes(methods[0]) + table_bytes,
        delegation=_delegation(methods, calls),
        kv_bytes_total=sum(map(_bytes, caches)),
        slots_per_layer=tuple(layer.slots for layer in decoder.layout),
        notes=asdict(figures),
    )


def _figures(
    methods: list[HtpGraph], shipped: list[CompiledContext], separate: list[CompiledContext], log: Path
) -> QnnFigures:
    bytes_shipped, bytes_unshared = (sum(len(each.binary) for each in contexts) for contexts in (shipped, separate))
    return QnnFigures(
        operators_per_method={graph.name: len(graph.operations) for graph in methods},
        context_bytes_shipped=bytes_shipped,
        context_bytes_unshared=bytes_unshared,
        weights_shared_between_methods=bytes_shipped < SHARED_SIZE_SHARE * bytes_unshared,
        compiler_ddr_bytes=_ddr_traffic(log, [graph.name for graph in methods]),
    )


def _delegation(graphs: list[HtpGraph], calls: list[MethodCalls]) -> Delegation:
    """Operators inside the delegates against kernels left to the CPU, over all methods of the written program."""
    left = [f"{call.method}: {name}" for call in calls for name in call.cpu_operators]
    inside = sum(len(graph.operations) for graph in graphs)
    return Delegation(inside / (inside + len(left)), {call.method: call.delegate_calls for call in calls}, tuple(left))


def _kernel_bytes(graph: HtpGraph) -> int:
    """Bytes of codes and scales of every weight matrix, each counted once."""
    kernels = {
        operand.name: operand.matrix
        for operation in graph.operations
        for operand in operation.inputs
        if isinstance(operand, Kernel)
    }
    return sum(matrix.format.stored_bytes(matrix.out_features, matrix.in_features) for matrix in kernels.values())


def _write_host_files(
    decoder: QuantizedDecoder, graphs: dict[str, HtpGraph], encodings: dict[str, Encoding], folder: Path
) -> None:
    layout = host_layout(decoder, encodings["logits"])
    methods = {
        graph.name: {
            "inputs": [
                {"name": value.name, "shape": value.shape, "storage": value.storage.value} for value in graph.inputs
            ],
            "outputs": [
                {"name": value.name, "shape": value.shape, "storage": value.storage.value} for value in graph.outputs
            ],
        }
        for graph in graphs.values()
    }
    text = json.dumps({"layout": layout.to_json(), "methods": methods}, indent=1)
    (folder / HOST_FILE).write_text(text, encoding="utf-8")
    table = decoder.weights.quantized(EMBEDDING)
    save_file({"codes": table.packed.contiguous(), "scales": table.scales.half().contiguous()}, folder / EMBEDDING_FILE)


def _bytes(value: Any) -> int:
    return int(np.prod(value.shape)) * value.storage.bytes


def _announce(section: str) -> None:
    """Marks the log between the compiler's own lines, which C buffers."""
    ctypes.CDLL(None).fflush(None)
    print(f"@@ {section}", flush=True)


def _ddr_traffic(log: Path, methods: list[str]) -> dict[str, dict[str, int]]:
    """The compiler's DDR summary of each method of the context without shared weights: bytes per call."""
    text = log.read_text(encoding="utf-8", errors="replace").split("@@ context unshared")[-1].split("@@ ")[0]
    names, summaries = ("spill", "fill", "write_total", "read_total"), _TRAFFIC.findall(text)
    if len(summaries) != len(methods):
        raise GateFailed(f"{log}: the compiler summed up DDR traffic {len(summaries)} times for {len(methods)} methods")
    return {
        method: dict(zip(names, map(int, found), strict=True)) for method, found in zip(methods, summaries, strict=True)
    }
