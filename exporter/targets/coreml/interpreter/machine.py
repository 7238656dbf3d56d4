"""The interpreter: opens a package, runs its functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.errors import GateFailed, OperatorsLacking, UsageError
from exporter.registry import did_you_mean
from exporter.targets.coreml.interpreter import operators
from exporter.targets.coreml.interpreter.compiler import CompiledFunction, Step, compile_function, known_operator
from exporter.targets.coreml.interpreter.constants import ConstantPool, FunctionConstants
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.interpreter.precision import Precision, rounded
from exporter.targets.coreml.interpreter.program import Program
from exporter.targets.coreml.interpreter.signature import Signature, as_input, check_names
from exporter.targets.coreml.interpreter.types import ElementType, TensorType

__all__ = ["Interpreter", "Precision", "lacking_operators", "operators"]

DAMAGED_STEP = "convert it again; do not ship this package"

State = dict[str, np.ndarray]
"""What a conversation keeps: float32 arrays for states of type fp16, by name."""


class Interpreter:
    """Runs the functions of one package. It computes with torch, on as many threads as torch is set to.

    `functions` gives the signature of each function.
    """

    def __init__(self, package: Package, precision: Precision) -> None:
        """Raises OperatorsLacking before a weight is read, GateFailed when the package is broken."""
        lacking = lacking_operators(package.program)
        if lacking:
            raise OperatorsLacking(
                f"{package.path}: the interpreter lacks {_lacking_text(lacking)}",
                "run it with Core ML itself, or convert it without them",
            )
        self.package, self.precision = package, precision
        pool = ConstantPool(package, precision)
        self._compiled: dict[str, CompiledFunction] = {}
        self.functions: dict[str, Signature] = {}
        for name, function in package.program.functions.items():
            self._compiled[name] = compile_function(function, FunctionConstants(function, pool), precision)
            self.functions[name] = Signature.of(function)
        self._states = self._shared_states()
        self._checked: set[str] = set()

    @staticmethod
    def open(path: Path | str, precision: Precision = Precision.FP32) -> Interpreter:
        """Opens a .mlpackage. Raises UsageError (not a package), GateFailed (broken), OperatorsLacking, ToolchainMissing."""
        return Interpreter(Package.open(path), precision)

    def make_state(self) -> State:
        """Zeros for every state of every function; functions share states of the same name."""
        return {
            name: np.zeros([size or 0 for size in declared.shape], np.float32)
            for name, declared in self._states.items()
        }

    @torch.inference_mode()
    def run(self, function: str, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, np.ndarray]:
        """Calls one function and updates the arrays of `state` in place. Floats come back as float32.

        Raises UsageError when an argument does not fit, GateFailed when the program contradicts what it declares.
        """
        if function not in self._compiled:
            raise UsageError(
                f"{self.package.path}: unknown function {function!r}", did_you_mean(function, list(self._compiled))
            )
        compiled, signature = self._compiled[function], self.functions[function]
        registers = compiled.registers.copy()
        self._fill_inputs(registers, compiled, signature, inputs)
        self._fill_states(registers, compiled, signature, state or {})
        check = function not in self._checked
        self._execute(compiled, registers, check)
        self._checked.add(function)
        outputs = {}
        for name, register in compiled.outputs.items():
            value = registers[register].contiguous()
            outputs[name] = (value.clone() if name in compiled.shared_outputs else value).numpy()
        return outputs

    def _shared_states(self) -> dict[str, TensorType]:
        states: dict[str, TensorType] = {}
        for function, signature in self.functions.items():
            for name, declared in signature.states.items():
                if states.setdefault(name, declared) != declared:
                    problem = f"state {name} is {declared} in function {function} and {states[name]} in another"
                    raise GateFailed(f"{self.package.path}: {problem}", DAMAGED_STEP)
        return states

    def _fill_inputs(
        self, registers: list[Any], compiled: CompiledFunction, signature: Signature, inputs: Mapping[str, Any]
    ) -> None:
        check_names("input", inputs, signature.inputs)
        for name, register in compiled.inputs.items():
            value = as_input(name, inputs[name], signature)
            if self.precision is Precision.FP16 and signature.inputs[name].dtype is ElementType.FP16:
                value = rounded(value)
            registers[register] = value

    def _fill_states(
        self, registers: list[Any], compiled: CompiledFunction, signature: Signature, state: State
    ) -> None:
        check_names("state", {name: state[name] for name in state if name in signature.states}, signature.states)
        for name, register in compiled.states.items():
            array = state[name]
            if array.dtype != np.float32 or not signature.states[name].accepts(array.shape):
                raise UsageError(f"state {name}: is {array.dtype}{list(array.shape)}", "take it from make_state()")
            registers[register] = torch.from_numpy(array)

    def _execute(self, compiled: CompiledFunction, registers: list[Any], check: bool) -> None:
        """Runs the steps. With `check`, every result is compared with the type that the program declares for it."""
        for step in compiled.steps:
            try:
                result = step.run(*[registers[number] for number in step.operands])
            except (RuntimeError, IndexError, TypeError, ValueError) as fault:
                problem = str(fault).splitlines()[0]
                raise self._fault(
                    compiled, step, f"failed: {problem}", "check the inputs, or convert it again"
                ) from fault
            if len(step.results) == 1:
                registers[step.results[0]] = result
            else:
                for number, part in zip(step.results, result or (), strict=True):
                    registers[number] = part
            if check:
                self._check(compiled, step, registers)
            for number in step.dead:
                registers[number] = None

    def _check(self, compiled: CompiledFunction, step: Step, registers: list[Any]) -> None:
        for declared, number in zip(step.operation.results, step.results, strict=True):
            value = registers[number]
            if not declared.type.accepts(tuple(value.shape)):
                made = f"{declared.name} is declared {declared.type} and came out as {list(value.shape)}"
                raise self._fault(compiled, step, made)
            if value.dtype is not declared.type.dtype.computed:
                raise self._fault(
                    compiled, step, f"{declared.name} is declared {declared.type} and came out as {value.dtype}"
                )

    def _fault(self, compiled: CompiledFunction, step: Step, problem: str, next_step: str = DAMAGED_STEP) -> GateFailed:
        where = (
            f"{self.package.path}: function {compiled.function.name}: {step.operation.operator} {step.operation.name}"
        )
        return GateFailed(f"{where} {problem}", next_step)


def lacking_operators(program: Program) -> dict[str, dict[str, int]]:
    """Operators that the interpreter does not have: how often each function uses them. Empty when it can run everything."""
    lacking: dict[str, dict[str, int]] = {}
    for name, function in program.functions.items():
        for operation in function.all_operations():
            if not known_operator(operation.operator):
                counts = lacking.setdefault(name, {})
                counts[operation.operator] = counts.get(operation.operator, 0) + 1
    return lacking


def _lacking_text(lacking: dict[str, dict[str, int]]) -> str:
    parts = [f"{', '.join(sorted(counts))} (function {name})" for name, counts in lacking.items()]
    return "; ".join(parts)
