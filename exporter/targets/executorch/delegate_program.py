"""Writes a .pte whose methods each call one delegate: the ExecuTorch program is stated, not traced.

Every method consists of its input and output tensors and one delegate call; methods may point at the same binary, which is then stored
once. Uses the serialization schema of ExecuTorch 1.5.1; `tests/unit/test_pte_program.py` pins it.
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

ALIGNMENT_BYTES = 64
ITEM_BYTES = {ScalarType.BYTE: 1, ScalarType.UINT16: 2, ScalarType.HALF: 2, ScalarType.INT: 4, ScalarType.FLOAT: 4}


@dataclass(frozen=True)
class TensorType:
    """Type and static shape of one input or output."""

    scalar_type: ScalarType
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.scalar_type]


@dataclass(frozen=True)
class DelegatedMethod:
    """Name, inputs and outputs of one method, in calling order."""

    name: str
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]


@dataclass(frozen=True)
class DelegatePayload:
    """A binary for a backend, and the options (key, value) that its runtime wants beside it."""

    backend: str
    binary: bytes
    options: tuple[tuple[str, bytes], ...] = ()


def delegate_program(methods: list[DelegatedMethod], payloads: list[DelegatePayload]) -> bytes:
    """The bytes of a .pte in which every method is one call: all into the same payload, or each into its own."""
    if len(payloads) not in (1, len(methods)):
        raise ValueError(f"{len(methods)} methods need one payload or one each, not {len(payloads)}")
    places = [0] * len(methods) if len(payloads) == 1 else range(len(methods))
    program = Program(
        version=0,
        execution_plan=[
            _execution_plan(method, place, payloads[place]) for method, place in zip(methods, places, strict=True)
        ],
        constant_buffer=[Buffer(storage=b"")],
        backend_delegate_data=[BackendDelegateInlineData(data=payload.binary) for payload in payloads],
        segments=[],
        constant_segment=SubsegmentOffsets(segment_index=0, offsets=[]),
    )
    return bytes(_serialize_pte_binary(_PTEFile(program=program), extract_delegate_segments=True))


def read_payloads(program: bytes) -> list[DelegatePayload]:
    """Reads a .pte back: the delegate of every method that is a single call, in the order of the methods."""
    stated = deserialize_pte_binary(program).program
    found = []
    for plan in stated.execution_plan:
        for delegate in plan.delegates:
            options = tuple((spec.key, bytes(spec.value)) for spec in delegate.compile_specs)
            binary = stated.backend_delegate_data[delegate.processed.index].data
            found.append(DelegatePayload(delegate.id, bytes(binary), options))
    return found


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


def _execution_plan(method: DelegatedMethod, place: int, payload: DelegatePayload) -> ExecutionPlan:
    """Inputs are the caller's memory; outputs lie one after another in the method's arena."""
    values = [EValue(_tensor(kind, None)) for kind in method.inputs]
    arena = 0
    for kind in method.outputs:
        values.append(
            EValue(_tensor(kind, AllocationDetails(memory_id=1, memory_offset_low=arena, memory_offset_high=0)))
        )
        arena += math.ceil(kind.bytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    count = len(method.inputs)
    everything = list(range(len(values)))
    call = Instruction(DelegateCall(delegate_index=0, args=everything))
    reference = BackendDelegateDataReference(DataLocation.INLINE, place)
    options = [CompileSpec(key, value) for key, value in payload.options]
    return ExecutionPlan(
        name=method.name,
        container_meta_type=ContainerMetadata(encoded_inp_str="", encoded_out_str=""),
        values=values,
        inputs=everything[:count],
        outputs=everything[count:],
        chains=[Chain(inputs=[], outputs=[], instructions=[call], stacktrace=None)],
        operators=[],
        delegates=[BackendDelegate(payload.backend, reference, options)],
        non_const_buffer_sizes=[0, arena],
    )


def _tensor(kind: TensorType, allocation: AllocationDetails | None) -> Tensor:
    return Tensor(
        scalar_type=kind.scalar_type,
        storage_offset=0,
        sizes=list(kind.shape),
        dim_order=list(range(len(kind.shape))),
        requires_grad=False,
        layout=0,
        data_buffer_idx=0,
        allocation_info=allocation,
        shape_dynamism=TensorShapeDynamism.STATIC,
    )
