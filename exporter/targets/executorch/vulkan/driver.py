"""Runs the graph that was lowered, in PyTorch. Nothing on this machine runs a Vulkan program: what is checked so is the traced graph, with
its cache operators, masks and tables, in float32; not the artifact, and not fp16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

from exporter.quantize.quantized_checkpoint import load_quantized
from exporter.targets.base import VERIFICATION_FOLDER
from exporter.targets.executorch.chunks import ChunkedDriver
from exporter.targets.executorch.host import HostLayout
from exporter.targets.executorch.vulkan.names import HOST_FILE, PROGRAM_FILE
from exporter.targets.executorch.vulkan.program import read_program
from exporter.targets.executorch.vulkan.trace import traced_method


class GraphCall:
    """The traced graph as a function; see `chunks.Call`."""

    def __init__(self, traced: ExportedProgram) -> None:
        module = traced.module()
        assert isinstance(module, fx.GraphModule)
        self._module = with_matrices_unpacked(module)

    @torch.no_grad()
    def __call__(self, token_ids: list[int], position: int) -> np.ndarray:
        logits: torch.Tensor = self._module(torch.tensor(token_ids), torch.tensor([position]))
        return logits.numpy()


def with_matrices_unpacked(module: fx.GraphModule) -> fx.GraphModule:
    """Computes what depends on constants alone once and not for every call: each dequantized matrix. The numbers stay the same."""
    for node in list(module.graph.nodes):
        if node.target is torch.ops.torchao.dequantize_affine.default:
            given = [_attribute(module, value.target) if isinstance(value, fx.Node) else value for value in node.args]
            name = f"unpacked_{node.name}"
            module.register_buffer(name, node.target(*given))
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(name))
            module.graph.erase_node(node)
    module.recompile()
    return module


def _attribute(module: fx.GraphModule, path: object) -> torch.Tensor:
    found = module
    for part in str(path).split("."):
        found = getattr(found, part)
    assert isinstance(found, torch.Tensor)
    return found


def open_driver(folder: Path) -> ChunkedDriver:
    """Traces the quantized checkpoint of an export's verification folder again: equal checkpoints give equal graphs."""
    layout = HostLayout.read(folder / HOST_FILE)
    traced = traced_method(load_quantized(folder / VERIFICATION_FOLDER))
    kv_bytes = sum(cache.bytes for cache in read_program(folder / PROGRAM_FILE).caches)
    return ChunkedDriver(GraphCall(traced), layout, kv_bytes, f"torch {torch.__version__}, traced graph")
