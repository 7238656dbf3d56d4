"""Writes a .pte whose methods each call one delegate: the ExecuTorch program is stated, not traced.

Every method consists of its input and output tensors and one delegate call; all methods point at the same context binary, which
is stored once. Uses the serialization schema of ExecuTorch 1.5.1; `tests/unit/test_pte_program.py` pins it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from executorch.exir._serialize import _PTEFile, _serialize_pte_binary
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import (
    AllocationDetails,
    BackendDelegate,
    BackendDelegateDataReference,
    BackendDelegateInlineData,
    Buffer,
    Chain,
    ContainerMetadata,
    DataLocation,
    DelegateCall,
    EValue,
    ExecutionPlan,
    Instruction,
    KernelCall,
    Program,
    SubsegmentOffsets,
    Tensor,
    TensorShapeDynamism,
)

from exporter.targets.executorch.qnn.graph import HtpGraph, Storage, Value


@dataclass(frozen=True)
class CompiledContext:
    """A context binary holding the graphs of one or more methods, and the compile options that the runtime needs with it."""

    binary: bytes
    options: bytes


_SCALAR_TYPES = {Storage.UINT16: ScalarType.UINT16, Storage.UINT8: ScalarType.BYTE, Storage.INT32: ScalarType.INT}
_ALIGNMENT = 64
_COMPILE_SPEC_KEY = "qnn_compile_spec"
_BACKEND = "QnnBackend"


@dataclass(frozen=True)
class DelegatedMethod:
    """Name, inputs and outputs of one method, in calling order."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @staticmethod
    def of(graph: HtpGraph) -> DelegatedMethod:
        return DelegatedMethod(graph.name, tuple(graph.inputs), tuple(graph.outputs))


def delegate_program(methods: list[DelegatedMethod], contexts: list[CompiledContext]) -> bytes:
    """The bytes of a .pte in which every method is one call: all into the same context, or each into its own."""
    if len(contexts) not in (1, len(methods)):
        raise ValueError(f"{len(methods)} methods need one context or one each, not {len(contexts)}")
    places = [0] * len(methods) if len(contexts) == 1 else range(len(methods))
    program = Program(
        version=0,
        execution_plan=[
            _execution_plan(method, place, [CompileSpec(_COMPILE_SPEC_KEY, contexts[place].options)])
            for method, place in zip(methods, places, strict=True)
        ],
        constant_buffer=[Buffer(storage=b"")],
        backend_delegate_data=[BackendDelegateInlineData(data=context.binary) for context in contexts],
        segments=[],
        constant_segment=SubsegmentOffsets(segment_index=0, offsets=[]),
    )
    return bytes(_serialize_pte_binary(_PTEFile(program=program), extract_delegate_segments=True))


@dataclass(frozen=True)
class MethodCalls:
    """What one method of a written program executes: how many delegate calls, and which operators on the CPU."""

    method: str
    delegate_calls: int
    cpu_operators: tuple[str, ...]


def read_calls(program: bytes) -> list[MethodCalls]:
    """Reads a .pte back: the audit of delegation looks at the file, not at what was meant to be written."""
    found = []
    for plan in deserialize_pte_binary(program).program.execution_plan:
        calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
        delegated = sum(isinstance(call, DelegateCall) for call in calls)
        kernels = [plan.operators[call.op_index].name for call in calls if isinstance(call, KernelCall)]
        found.append(MethodCalls(plan.name, delegated, tuple(kernels)))
    return found


def _execution_plan(method: DelegatedMethod, place: int, specs: list[CompileSpec]) -> ExecutionPlan:
    """Inputs are the caller's memory; outputs lie one after another in the method's arena."""
    values = [EValue(_tensor(value, None)) for value in method.inputs]
    arena = 0
    for value in method.outputs:
        values.append(
            EValue(_tensor(value, AllocationDetails(memory_id=1, memory_offset_low=arena, memory_offset_high=0)))
        )
        size = math.prod(value.shape) * value.storage.bytes
        arena += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
    count = len(method.inputs)
    everything = list(range(len(values)))
    call = Instruction(DelegateCall(delegate_index=0, args=everything))
    return ExecutionPlan(
        name=method.name,
        container_meta_type=ContainerMetadata(encoded_inp_str="", encoded_out_str=""),
        values=values,
        inputs=everything[:count],
        outputs=everything[count:],
        chains=[Chain(inputs=[], outputs=[], instructions=[call], stacktrace=None)],
        operators=[],
        delegates=[BackendDelegate(_BACKEND, BackendDelegateDataReference(DataLocation.INLINE, place), specs)],
        non_const_buffer_sizes=[0, arena],
    )


def _tensor(value: Value, allocation: AllocationDetails | None) -> Tensor:
    return Tensor(
        scalar_type=_SCALAR_TYPES[value.storage],
        storage_offset=0,
        sizes=list(value.shape),
        dim_order=list(range(len(value.shape))),
        requires_grad=False,
        layout=0,
        data_buffer_idx=0,
        allocation_info=allocation,
        shape_dynamism=TensorShapeDynamism.STATIC,
    )
