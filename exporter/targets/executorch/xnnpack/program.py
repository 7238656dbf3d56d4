"""Writes the traced methods as one .pte, and reads back from the file what it executes and allocates."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackDynamicallyQuantizedPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import DelegateCall, EValue, ExecutionPlan, KernelCall, Tensor
from torch.export import ExportedProgram

from exporter.targets.executorch.xnnpack.names import CACHE_PREFIX, STATES_PREFIX

ITEM_BYTES = {
    ScalarType.BYTE: 1,
    ScalarType.CHAR: 1,
    ScalarType.HALF: 2,
    ScalarType.INT: 4,
    ScalarType.FLOAT: 4,
    ScalarType.LONG: 8,
}


def write_program(methods: dict[str, ExportedProgram], path: Path) -> None:
    """Products of INT8 activations go to XNNPACK, the rest stays with ExecuTorch's operators. Caches are one memory for all methods."""
    edge = to_edge_transform_and_lower(
        methods,
        partitioner=[XnnpackDynamicallyQuantizedPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    planning = MemoryPlanningPass(alloc_graph_input=False, share_mutable_buffers=True)
    program = edge.to_executorch(
        ExecutorchBackendConfig(
            memory_planning_pass=planning,
            emit_mutable_buffer_names=True,
            run_reinplace_pass=True,
            reinplace_extra_ops=frozenset({torch.ops.aten.index_put.default}),
        )
    )
    with path.open("wb") as stream:
        program.write_to_file(stream)


@dataclass(frozen=True)
class LayerBuffer:
    """One buffer of a layer's cache, whose slots come first in its shape, or of its states, of which copies do."""

    layer: int
    part: str
    length: int
    bytes: int


@dataclass(frozen=True)
class MethodFigures:
    """What one method of a written program executes and allocates. `arena_bytes` leaves out caches and states."""

    name: str
    delegate_calls: int
    operators: dict[str, int]
    arena_bytes: int
    caches: tuple[LayerBuffer, ...]
    states: tuple[LayerBuffer, ...]


def read_methods(path: Path) -> dict[str, MethodFigures]:
    """By name. The audits look at the file, not at what was meant to be written."""
    plans = deserialize_pte_binary(path.read_bytes()).program.execution_plan
    return {plan.name: _figures(plan) for plan in plans}


def _figures(plan: ExecutionPlan) -> MethodFigures:
    calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    names = [plan.operators[call.op_index] for call in calls if isinstance(call, KernelCall)]
    caches, states = (_buffers(plan, prefix) for prefix in (CACHE_PREFIX, STATES_PREFIX))
    kept = {
        value.val.allocation_info.memory_id
        for value in plan.values
        if _path(value, CACHE_PREFIX) or _path(value, STATES_PREFIX)
    }
    arenas = [size for index, size in enumerate(plan.non_const_buffer_sizes) if index not in kept]
    return MethodFigures(
        plan.name,
        sum(isinstance(call, DelegateCall) for call in calls),
        dict(sorted(Counter(f"{operator.name}.{operator.overload}".rstrip(".") for operator in names).items())),
        sum(arenas),
        caches,
        states,
    )


def _buffers(plan: ExecutionPlan, prefix: str) -> tuple[LayerBuffer, ...]:
    found = []
    for value in plan.values:
        name = _path(value, prefix)
        if name:
            size = math.prod(value.val.sizes) * ITEM_BYTES[value.val.scalar_type]
            found.append(LayerBuffer(int(name[-2]), name[-1], value.val.sizes[0], size))
    return tuple(sorted(found, key=lambda buffer: (buffer.layer, buffer.part)))


def _path(value: EValue, prefix: str) -> list[str]:
    """The name that a buffer keeps in the file, at its dots; empty for any other value."""
    tensor = value.val
    if not isinstance(tensor, Tensor) or tensor.extra_tensor_info is None or tensor.allocation_info is None:
        return []
    name = (tensor.extra_tensor_info.fully_qualified_name or "").split(".")
    return name if name[0] == prefix else []
