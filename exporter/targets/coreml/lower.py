"""From a quantized checkpoint to `model.mlpackage`: both functions of one program, saved once and audited as saved."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from coremltools.converters.mil.mil import Program

from exporter.child import Emit
from exporter.decoder.forward import decode_chunk
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized, save_quantized
from exporter.targets.base import LowerOutcome
from exporter.targets.coreml.decoder_audit import audit_decoder
from exporter.targets.coreml.graph import FunctionGraph
from exporter.targets.coreml.host import HostLayout
from exporter.targets.coreml.kv_state import CacheCodec, state_shapes
from exporter.targets.coreml.layout import CHANNELS_FIRST, ROWS
from exporter.targets.coreml.names import (
    DECODE,
    HOST_FILE,
    LENGTH,
    PACKAGE,
    PACKAGE_FILES,
    POSITION,
    PREFILL,
    TOKENS,
    WEIGHTS_IN_PACKAGE,
)
from exporter.targets.coreml.ops import MilOps, Tensor
from exporter.targets.coreml.package import SPECIFICATION_VERSION, save_package
from exporter.targets.coreml.positions import Positions
from exporter.targets.coreml.profile import Profile
from exporter.targets.coreml.recurrent_state import held_shapes
from exporter.targets.coreml.rounding import rounded_to_half
from exporter.targets.coreml.weights import StoredWeights


def lower_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Entry point of the child process; see `CoreMlTarget.lower` for the arguments.

    Raises GateFailed when what was written is not what was meant.
    """
    folder, profile = Path(arguments["artifact"]), Profile(arguments["profile"])
    decoder = load_for(profile, Path(arguments["quantized"]))
    package = save_decoder(decoder, profile, {PREFILL: decoder.chunk, DECODE: 1}, folder)
    host_layout(decoder).write(folder / HOST_FILE)
    return asdict(outcome(decoder, package))


def load_for(profile: Profile, quantized: Path) -> QuantizedDecoder:
    """The decoder with the numbers that the package computes with; the oracle reads them from where they were."""
    decoder = load_quantized(quantized)
    if not profile.channels_first:
        return decoder
    rounded = rounded_to_half(decoder)
    save_quantized(rounded, quantized)
    return rounded


def host_layout(decoder: QuantizedDecoder) -> HostLayout:
    return HostLayout(decoder.context, decoder.chunk, decoder.spec.vocab_size)


def save_decoder(decoder: QuantizedDecoder, profile: Profile, functions: dict[str, int], folder: Path) -> Path:
    """Writes the package with functions for so many tokens each into `folder`. The last of them is the default."""
    program = build_program(decoder, profile, functions)
    save_package(program, list(functions)[-1], host_layout(decoder).metadata(), folder / PACKAGE)
    return folder / PACKAGE


def build_program(decoder: QuantizedDecoder, profile: Profile, functions: dict[str, int]) -> Program:
    """Functions by name, each for so many tokens, with the same states and the same constants."""
    layout = CHANNELS_FIRST if profile.channels_first else ROWS
    stored, program = StoredWeights(decoder.weights, layout), Program()
    states = state_shapes(decoder.spec, decoder.layout, decoder.kv_format, layout)
    states |= held_shapes(decoder.spec, layout.channels_first)
    codecs = tuple(CacheCodec(decoder.kv_format, constants) for constants in decoder.kv_constants)
    recurrent = any(layer.states for layer in decoder.spec.layers)
    rows = (-(-decoder.context // decoder.chunk) + recurrent) * decoder.chunk  # padding of a chunk that starts anywhere
    for name, tokens in functions.items():
        inputs = {TOKENS: (1, tokens), POSITION: (1,)}
        if recurrent and tokens > 1:
            inputs[LENGTH] = (1,)
        with FunctionGraph(program, name, inputs, states) as graph:
            length = graph.input(LENGTH) if LENGTH in inputs else None
            positions = Positions(graph, layout, graph.input(POSITION), tokens, rows, length)
            ops = MilOps(graph, decoder.spec, stored, decoder.layout, codecs, positions)
            ops.finish(decode_chunk(ops, decoder.spec, Tensor(graph.input(TOKENS))))
    return program


def outcome(decoder: QuantizedDecoder, package: Path) -> LowerOutcome:
    """Read back from the written package. Raises GateFailed when it is not what was meant."""
    figures, states = audit_decoder(package, decoder)
    return LowerOutcome(
        shipped_files=(HOST_FILE, *(f"{PACKAGE}/{name}" for name in PACKAGE_FILES)),
        weight_bytes=(package / WEIGHTS_IN_PACKAGE).stat().st_size,
        delegation=None,
        kv_bytes_total=states.cache_bytes,
        slots_per_layer=states.slots_per_layer,
        state_bytes_total=states.recurrent_bytes,
        notes=asdict(figures),
        requirements={
            "minimum_deployment_target": {"ios": "18.0", "macos": "15.0"},
            "specification_version": SPECIFICATION_VERSION,
            "apple_runtime_involved": False,
        },
    )
