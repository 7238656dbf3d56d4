"""Writes the traced method as one .pte for the Vulkan delegate, and reads back from the file what the delegate executes and allocates."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
from executorch.backends.vulkan.serialization import vulkan_graph_serialize as serialization
from executorch.backends.vulkan.serialization.vulkan_graph_schema import OperatorCall, VkDataType, VkGraph, VkTensor
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.schema import DelegateCall, ExecutionPlan, KernelCall, Program
from torch.export import ExportedProgram

from exporter.errors import GateFailed
from exporter.targets.executorch.vulkan.names import METHOD

ITEM_BYTES = {VkDataType.FLOAT16: 2, VkDataType.FLOAT32: 4}
CACHE_ARGUMENTS = {"sdpa_with_kv_cache.default": (3, 4), "update_cache.default": (1,)}
"""Operators that write a cache, and which of their arguments it is. Its shape is [1, C, K, Hd]."""


def write_program(traced: ExportedProgram, path: Path, half: bool) -> None:
    """`half`: every float of the delegate, caches included, is fp16. Inputs and outputs of the method stay as traced."""
    options = {"require_dynamic_shapes": True, "force_fp16": half}
    edge = to_edge_transform_and_lower(
        {METHOD: traced},
        partitioner=[VulkanPartitioner(options)],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    planning = MemoryPlanningPass(alloc_graph_input=False)
    program = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning))
    with path.open("wb") as stream:
        program.write_to_file(stream)


@dataclass(frozen=True)
class Cache:
    """One buffer of keys or values inside the delegate."""

    slots: int
    bytes: int


@dataclass(frozen=True)
class ProgramFigures:
    """What a written program executes: delegates, operators inside them and outside, and the caches in order of the layers, keys before
    values."""

    delegates: int
    operators_inside: dict[str, int]
    operators_outside: dict[str, int]
    caches: tuple[Cache, ...]


def read_program(path: Path) -> ProgramFigures:
    """The audits look at the file, not at what was meant to be written."""
    program = deserialize_pte_binary(path.read_bytes()).program
    plan = next(plan for plan in program.execution_plan if plan.name == METHOD)
    calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    names = [plan.operators[call.op_index] for call in calls if isinstance(call, KernelCall)]
    graphs = [_graph(program, plan, call.delegate_index) for call in calls if isinstance(call, DelegateCall)]
    inside = Counter(call.name for graph in graphs for call in graph.chain)
    return ProgramFigures(
        len(graphs),
        dict(sorted(inside.items())),
        dict(sorted(Counter(f"{operator.name}.{operator.overload}".rstrip(".") for operator in names).items())),
        tuple(cache for graph in graphs for cache in _caches(graph)),
    )


def _graph(program: Program, plan: ExecutionPlan, delegate: int) -> VkGraph:
    data = program.backend_delegate_data[plan.delegates[delegate].processed.index].data
    return serialization.flatbuffer_to_vk_graph(serialization.extract_vk_flatbuffer(data))


def _caches(graph: VkGraph) -> list[Cache]:
    places = [
        call.args[place]
        for call in graph.chain
        for place in CACHE_ARGUMENTS.get(call.name, ())
        if call.args[place] >= 0
    ]
    tensors = [tensor for place in places if isinstance(tensor := graph.values[place].value, VkTensor)]
    audit_reads(graph.chain)
    return [Cache(tensor.dims[1], math.prod(tensor.dims) * ITEM_BYTES[tensor.datatype]) for tensor in tensors]


def audit_reads(chain: list[OperatorCall]) -> None:
    """Raises GateFailed unless each cache is written before it is read, and read as the same tensor that is written: nothing here would
    notice a copy. An operator's last argument is what it writes."""
    for at, call in enumerate(chain):
        if call.name != "update_cache.default":
            continue
        cache = call.args[CACHE_ARGUMENTS[call.name][0]]
        readers = [index for index, other in enumerate(chain) if cache in other.args[:-1] and index != at]
        if not readers or min(readers) < at:
            raise GateFailed("a cache is not read after it is written", "report it with the model's config.json")
