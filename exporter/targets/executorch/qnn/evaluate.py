"""Runs an HtpGraph in float32, for calibration (record the range of every value) and for emulation (round every value)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from exporter.targets.executorch.qnn.graph import (
    Constant,
    Encoding,
    HtpGraph,
    Operand,
    Operation,
    Storage,
    Value,
)

Observer = Callable[[Value, torch.Tensor], torch.Tensor]
"""Sees each value as it is computed and returns what the next operator shall read."""


class GraphEvaluator:
    """Executes one graph. Kernels are dequantized once and kept."""

    def __init__(self, graph: HtpGraph) -> None:
        self.graph = graph
        self._kernels: dict[str, torch.Tensor] = {}
        self._last_use = _last_uses(graph)

    def run(self, inputs: dict[str, torch.Tensor], observe: Observer) -> dict[str, torch.Tensor]:
        """Real-valued inputs by name -> real-valued outputs by name."""
        values = {value.name: observe(value, inputs[value.name]) for value in self.graph.inputs}
        for index, operation in enumerate(self.graph.operations):
            operands = [self._operand(operand, values) for operand in operation.inputs]
            values[operation.output.name] = observe(operation.output, _EVALUATE[operation.kind](operation, operands))
            for name in self._last_use.get(index, ()):
                del values[name]
        return {value.name: values[value.name] for value in self.graph.outputs}

    def _operand(self, operand: Operand, values: dict[str, torch.Tensor]) -> torch.Tensor:
        if isinstance(operand, Value):
            return values[operand.name]
        if isinstance(operand, Constant):
            return operand.encoding.snap(operand.data)
        if operand.name not in self._kernels:
            self._kernels[operand.name] = operand.matrix.dequantize()
        return self._kernels[operand.name]


def _last_uses(graph: HtpGraph) -> dict[int, list[str]]:
    """Names that no operation after the given one reads; outputs are kept."""
    last: dict[str, int] = {}
    for index, operation in enumerate(graph.operations):
        for operand in operation.inputs:
            if isinstance(operand, Value):
                last[operand.name] = index
    kept = {value.name for value in graph.outputs}
    uses: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in kept:
            uses.setdefault(index, []).append(name)
    return uses


def _convolution(operation: Operation, operands: list[torch.Tensor]) -> torch.Tensor:
    value, kernel = operands
    return torch.nn.functional.linear(value[..., : kernel.shape[1]], kernel)


def _rms_norm(operation: Operation, operands: list[torch.Tensor]) -> torch.Tensor:
    value, gain = operands
    epsilon = float(operation.parameters["epsilon"])
    return value * torch.rsqrt(value.square().mean(-1, keepdim=True) + epsilon) * gain


def _slice(operation: Operation, operands: list[torch.Tensor]) -> torch.Tensor:
    parameters = operation.parameters
    start, stop = int(parameters["start"]), int(parameters["stop"])
    return operands[0].narrow(int(parameters["axis"]), start, stop - start)


def _softmax(operation: Operation, operands: list[torch.Tensor]) -> torch.Tensor:
    return (operands[0] * float(operation.parameters["beta"])).softmax(-1)


_EVALUATE: dict[str, Callable[[Operation, list[torch.Tensor]], torch.Tensor]] = {
    "Conv2d": _convolution,
    "RmsNorm": _rms_norm,
    "ReduceMean": lambda operation, operands: operands[0].mean(-1, keepdim=True),
    "StridedSlice": _slice,
    "Softmax": _softmax,
    "MatMul": lambda operation, operands: operands[0] @ operands[1],
    "ElementWiseAdd": lambda operation, operands: operands[0] + operands[1],
    "ElementWiseSubtract": lambda operation, operands: operands[0] - operands[1],
    "ElementWiseMultiply": lambda operation, operands: operands[0] * operands[1],
    "Reshape": lambda operation, operands: operands[0].reshape(operation.output.shape),
    "Transpose": lambda operation, operands: operands[0].permute(operation.parameters["order"]),
    "Concat": lambda operation, operands: torch.cat(operands, dim=operation.parameters["axis"]),
    "Pad": lambda operation, operands: torch.nn.functional.pad(operands[0], (0, operation.parameters["after"])),
    "Sigmoid": lambda operation, operands: operands[0].sigmoid(),
    "Relu": lambda operation, operands: operands[0].relu(),
    "Gelu": lambda operation, operands: torch.nn.functional.gelu(operands[0]),
    "Convert": lambda operation, operands: operands[0],
    "Cast": lambda operation, operands: operands[0].long(),
    "Gather": lambda operation, operands: operands[0][operands[1].long()],
    "ReluMinMax": lambda operation, operands: operands[0].clamp(
        operation.parameters["min_value"], operation.parameters["max_value"]
    ),
}


def emulator(encodings: dict[str, Encoding]) -> Observer:
    """Observer that rounds every value to its encoding: the artifact's arithmetic with exact operators."""

    def observe(value: Value, data: torch.Tensor) -> torch.Tensor:
        return data if value.storage is Storage.INT32 else encodings[value.name].snap(data)

    return observe
