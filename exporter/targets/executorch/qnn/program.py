"""The .pte of the HTP: every method is one call into a context binary, and all of them may call into the same one."""

from __future__ import annotations

from dataclasses import dataclass

from executorch.exir.scalar_type import ScalarType

from exporter.targets.executorch import delegate_program as pte
from exporter.targets.executorch.qnn.graph import HtpGraph, Storage, Value


@dataclass(frozen=True)
class CompiledContext:
    """A context binary holding the graphs of one or more methods, and the compile options that the runtime needs with it."""

    binary: bytes
    options: bytes


_SCALAR_TYPES = {Storage.UINT16: ScalarType.UINT16, Storage.UINT8: ScalarType.BYTE, Storage.INT32: ScalarType.INT}
_OPTIONS_KEY = "qnn_compile_spec"
_BACKEND = "QnnBackend"


@dataclass(frozen=True)
class GraphSignature:
    """Name, inputs and outputs of one method, in calling order."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @staticmethod
    def of(graph: HtpGraph) -> GraphSignature:
        return GraphSignature(graph.name, tuple(graph.inputs), tuple(graph.outputs))


def context_program(signatures: list[GraphSignature], contexts: list[CompiledContext]) -> bytes:
    """The bytes of a .pte in which every method is one call: all into the same context, or each into its own."""
    methods = [pte.DelegatedMethod(item.name, _types(item.inputs), _types(item.outputs)) for item in signatures]
    payloads = [
        pte.DelegatePayload(_BACKEND, context.binary, ((_OPTIONS_KEY, context.options),)) for context in contexts
    ]
    return pte.delegate_program(methods, payloads)


def _types(values: tuple[Value, ...]) -> tuple[pte.TensorType, ...]:
    return tuple(pte.TensorType(_SCALAR_TYPES[value.storage], value.shape) for value in values)
