"""A thin layer over onnx_ir: named constants stored once, nodes as calls, one model at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

OPSET, MICROSOFT = 24, "com.microsoft"
"""TensorScatter needs opset 24, which needs version 11 of the file format."""
IR_VERSION = 11

SMALLEST_EXTERNAL_BYTES = 1024
"""Smaller constants stay in the graph file, where shapes and axes can be read."""

Value = ir.Value

ScanBody = Callable[[Sequence[Value], Sequence[Value]], tuple[Sequence[Value], Sequence[Value]]]


def soft_cap(graph: GraphBuilder, value: Value, cap: float) -> Value:
    """cap * tanh(value / cap)."""
    bounded = graph.node("Tanh", graph.node("Mul", value, graph.scalar(1 / cap)))
    return graph.node("Mul", bounded, graph.scalar(cap))


class GraphBuilder:
    """Collects inputs, constants and nodes in the order of the calls."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._constants: dict[str, ir.Value] = {}
        self._names: dict[str, int] = {}

    def input(self, name: str, data_type: ir.DataType, shape: Sequence[int | str]) -> Value:
        value = ir.Value(name=name, type=ir.TensorType(data_type), shape=ir.Shape(list(shape)))
        self.inputs.append(value)
        return value

    def output(self, value: Value, name: str, data_type: ir.DataType, shape: Sequence[int | str]) -> None:
        """Declares an inner value as an output of the graph under a name of its own."""
        value.name, value.type, value.shape = name, ir.TensorType(data_type), ir.Shape(list(shape))
        self.outputs.append(value)

    def constant(self, name: str, array: np.ndarray) -> Value:
        """A stored tensor; a second call with the same name returns the first one."""
        if name not in self._constants:
            self._constants[name] = self._initializer(name, ir.Tensor(np.asarray(array, order="C"), name=name))
        return self._constants[name]

    def deferred(self, name: str, make: Callable[[], np.ndarray], dtype: ir.DataType, shape: Sequence[int]) -> Value:
        """A stored tensor that is computed only while the file is written, so that no two copies are in memory."""
        if name not in self._constants:
            lazy = ir.LazyTensor(
                lambda: ir.Tensor(np.asarray(make(), order="C"), name=name),
                dtype=dtype,
                shape=ir.Shape(shape),
                name=name,
            )
            self._constants[name] = self._initializer(name, lazy)
        return self._constants[name]

    def scalar(self, number: float, dtype: type = np.float32) -> Value:
        return self.constant(f"scalar_{np.dtype(dtype).name}_{number!r}", np.array(number, dtype))

    def integers(self, *numbers: int) -> Value:
        """A one-dimensional int64 tensor: shapes, axes, sizes of a split."""
        return self.constant(f"integers_{'_'.join(map(str, numbers))}", np.array(numbers, np.int64))

    def node(self, operator: str, *inputs: Value | None, domain: str = "", name: str = "", **attributes: Any) -> Value:
        """Appends an operator with one output and returns it."""
        return self.nodes(operator, *inputs, domain=domain, name=name, count=1, **attributes)[0]

    def nodes(
        self,
        operator: str,
        *inputs: Value | None,
        count: int,
        domain: str = "",
        name: str = "",
        **attributes: Any,
    ) -> list[Value]:
        """Appends an operator with `count` outputs."""
        label = self._fresh(name or operator.lower())
        node = ir.node(operator, list(inputs), attributes=attributes, domain=domain, num_outputs=count, name=label)
        for index, value in enumerate(node.outputs):
            value.name = label if count == 1 else f"{label}.{index}"
        self._nodes.append(node)
        return list(node.outputs)

    def scan(self, states: Sequence[Value], rows: Sequence[Value], body: ScanBody) -> tuple[list[Value], list[Value]]:
        """Runs `body` once for every index of the first axis of `rows`, which all have it: it gets the states and that index of each, and
        returns the next states and what is stacked. Returns the last states and the stacks. The body may use any value outside."""
        outer, self._nodes = self._nodes, []
        names = [self._fresh("scan.input") for _ in (*states, *rows)]
        inputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in names]
        kept, stacked = body(inputs[: len(states)], inputs[len(states) :])
        inner, self._nodes = self._nodes, outer
        for value in (*kept, *stacked):
            value.type = ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(inputs, [*kept, *stacked], nodes=inner, opset_imports={"": OPSET}, name=self._fresh("step"))
        settings: dict[str, Any] = {"num_scan_inputs": len(rows), "body": graph}
        results = self.nodes("Scan", *states, *rows, count=len(kept) + len(stacked), **settings)
        return results[: len(kept)], results[len(kept) :]

    def save(self, path: Path) -> ir.Model:
        """Writes the graph, and its large constants into one aligned file beside it."""
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self._nodes,
            initializers=list(self._constants.values()),
            opset_imports={"": OPSET, MICROSOFT: 1},
            name=self.name,
        )
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="slm-export")
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=SMALLEST_EXTERNAL_BYTES)
        return model

    def _initializer(self, name: str, tensor: Any) -> ir.Value:
        self._names[name] = self._names.get(name, 0) + 1
        return ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)

    def _fresh(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if count == 0 else f"{name}.{count}"
