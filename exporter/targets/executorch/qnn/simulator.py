"""Runs the methods of a .pte in the HTP simulator through the ExecuTorch runtime. For child processes: it prints from C++."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from exporter.errors import ToolchainMissing
from exporter.targets.executorch.qnn.program import GraphSignature


class SimulatedMethod:
    """One method with named inputs and outputs."""

    def __init__(self, method: object, signature: GraphSignature) -> None:
        self._method = method
        self._inputs = [value.name for value in signature.inputs]
        self._outputs = [value.name for value in signature.outputs]

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._inputs]
        outputs = self._method.execute(tensors)  # type: ignore[attr-defined]
        return {name: output.numpy() for name, output in zip(self._outputs, outputs, strict=True)}


def load_methods(program: Path, signatures: list[GraphSignature]) -> dict[str, SimulatedMethod]:
    """Loads every method. Raises ToolchainMissing when the runtime cannot open the file."""
    from executorch.runtime import Runtime, Verification

    try:
        loaded = Runtime.get().load_program(program, verification=Verification.Minimal)
        return {item.name: SimulatedMethod(loaded.load_method(item.name), item) for item in signatures}
    except RuntimeError as fault:
        raise ToolchainMissing(
            f"the HTP simulator cannot load {program.name} ({fault})", "run: slm-export doctor"
        ) from None
