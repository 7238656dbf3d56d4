"""From a function to a flat list of bound steps over numbered registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from exporter.errors import GateFailed
from exporter.targets.coreml.interpreter.compression import EXPANSIONS
from exporter.targets.coreml.interpreter.constants import CONST, FunctionConstants
from exporter.targets.coreml.interpreter.operators.base import OPERATORS, Call, Effect, Kernel
from exporter.targets.coreml.interpreter.operators.slicing import update_in_place
from exporter.targets.coreml.interpreter.precision import Precision, rounded
from exporter.targets.coreml.interpreter.program import Argument, Function, Operation
from exporter.targets.coreml.interpreter.sharing import Node, Role, find_sharing
from exporter.targets.coreml.interpreter.types import ElementType, TensorType

READ_STATE, WRITE_STATE, SLICE_UPDATE = "read_state", "write_state", "slice_update"
ABSENT = 0
"""The register of optional parameters that are not given."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: `run` takes the operands and returns the result, or a tuple of results; `dead` are read for the last time."""

    run: Callable[..., Any]
    operands: tuple[int, ...]
    results: tuple[int, ...]
    dead: tuple[int, ...]
    operation: Operation


@dataclass(frozen=True)
class CompiledFunction:
    """Steps, and the registers where a run begins (constants filled in) and ends. `shared_outputs` lie in memory that others own."""

    function: Function
    steps: list[Step]
    registers: list[Any]
    inputs: dict[str, int]
    states: dict[str, int]
    outputs: dict[str, int]
    shared_outputs: frozenset[str]


def known_operator(name: str) -> bool:
    return name in OPERATORS or name in EXPANSIONS or name in (CONST, READ_STATE, WRITE_STATE)


def compile_function(function: Function, constants: FunctionConstants, precision: Precision) -> CompiledFunction:
    """Binds every operation of `function`. Raises GateFailed when the program contradicts itself."""
    return _Compiler(function, constants, precision).compile()


@dataclass(frozen=True)
class _Bound:
    operation: Operation
    kernel: Kernel
    call: Call | None
    node: Node


class _Compiler:
    def __init__(self, function: Function, constants: FunctionConstants, precision: Precision) -> None:
        self.function, self.constants, self.precision = function, constants, precision
        self.types: dict[str, TensorType] = {**function.inputs, **function.states}
        self.registers: list[Any] = [None]
        self.numbers: dict[str, int] = {}
        self.folded: dict[int, int] = {}

    def compile(self) -> CompiledFunction:
        for name in self.types:
            self._new_register(name)
        for operation in self.function.operations:
            self.types.update({result.name: result.type for result in operation.results})
        bound = [
            self._bind(operation)
            for operation in self.function.operations
            if operation.operator != CONST and operation.operator not in EXPANSIONS
        ]
        outputs = {name: self._register(name) for name in self.function.outputs}
        sharing = find_sharing([item.node for item in bound], outputs.values())
        for index, item in enumerate(bound):
            if item.node.role is Role.READ and index in sharing.copied_reads:
                bound[index] = _with_function(item, torch.clone)
            elif item.node.role is Role.UPDATE and index not in sharing.copied_updates and item.call is not None:
                bound[index] = _with_function(item, update_in_place(item.call).function)
        kept = [item for index, item in enumerate(bound) if index not in sharing.finished_writes]
        return CompiledFunction(
            self.function,
            self._steps(kept, set(outputs.values())),
            self.registers,
            {name: self.numbers[name] for name in self.function.inputs},
            {name: self.numbers[name] for name in self.function.states},
            outputs,
            frozenset(name for name, number in outputs.items() if not sharing.is_private(number)),
        )

    def _new_register(self, name: str) -> int:
        self.numbers[name] = len(self.registers)
        self.registers.append(None)
        return self.numbers[name]

    def _register(self, argument: Argument) -> int:
        """Where a value lies; a constant is decoded into a register when it is first met."""
        if isinstance(argument, str) and argument in self.numbers:
            return self.numbers[argument]
        if argument not in self.constants:
            raise self._broken(f"reads {argument!r}, which no operation before it makes")
        value = self.constants.tensor(argument)
        if isinstance(argument, str):
            self._new_register(argument)
        else:
            self.registers.append(None)
        self.registers[-1] = value
        return len(self.registers) - 1

    def _bind(self, operation: Operation) -> _Bound:
        if operation.operator == READ_STATE:
            (state,) = operation.inputs["input"]
            return self._node(operation, Role.READ, Kernel(_same, (), Effect.VIEWS), (self._register(state),), None)
        if operation.operator == WRITE_STATE:
            (state,), (data,) = operation.inputs["input"], operation.inputs["data"]
            pair = (self._register(state), self._register(data))
            return self._node(operation, Role.WRITE, Kernel(_overwrite, (), Effect.VIEWS), pair, None)
        call = self._call(operation)
        kernel = OPERATORS.get(operation.operator)(call)
        operands: list[int] = []
        for name in kernel.operands:
            operands += [self._register(item) for item in operation.inputs.get(name, ())] or [ABSENT]
        role = Role.UPDATE if operation.operator == SLICE_UPDATE else Role.COMPUTE
        return self._node(operation, role, kernel, tuple(operands), call)

    def _call(self, operation: Operation) -> Call:
        constants = {
            name: self.constants.tensor(values[0])
            for name, values in operation.inputs.items()
            if len(values) == 1 and values[0] in self.constants
        }
        types = {
            name: self.types[values[0]] if isinstance(values[0], str) else values[0].type
            for name, values in operation.inputs.items()
            if values and (not isinstance(values[0], str) or values[0] in self.types)
        }
        return Call(operation, constants, types)

    def _node(
        self, operation: Operation, role: Role, kernel: Kernel, operands: tuple[int, ...], call: Call | None
    ) -> _Bound:
        results = tuple(self._new_register(result.name) for result in operation.results)
        return _Bound(operation, kernel, call, Node(role, kernel.effect, operands, results))

    def _steps(self, bound: list[_Bound], kept: set[int]) -> list[Step]:
        """Steps, with every register freed after its last reader. Constants and states stay."""
        last = {register: index for index, item in enumerate(bound) for register in item.node.operands}
        made = {register for item in bound for register in item.node.results} | set(
            self.numbers[name] for name in self.function.inputs
        )
        steps = []
        for index, item in enumerate(bound):
            dead = {register for register in item.node.operands if last[register] == index and register in made}
            dead |= {register for register in item.node.results if register not in last}
            run = self._finished(item)
            steps.append(Step(run, item.node.operands, item.node.results, tuple(sorted(dead - kept)), item.operation))
        return steps

    def _finished(self, item: _Bound) -> Callable[..., Any]:
        """The kernel with its results in the types that the program declares: rounded, where that is asked for."""
        function, types = item.kernel.function, [result.type.dtype for result in item.operation.results]
        if item.kernel.effect is Effect.VIEWS or not types:
            return function
        rounds = self.precision is Precision.FP16 and item.kernel.effect is Effect.COMPUTES
        finishers = [_finisher(dtype, rounds) for dtype in types]
        if len(finishers) > 1:
            return lambda *operands: tuple(
                finish(value) for finish, value in zip(finishers, function(*operands), strict=True)
            )
        (finish,) = finishers
        if finish is _same:
            return function
        return lambda *operands: finish(function(*operands))

    def _broken(self, problem: str) -> GateFailed:
        return GateFailed(f"function {self.function.name} {problem}", "convert it again")


def _with_function(item: _Bound, function: Callable[..., Any]) -> _Bound:
    return _Bound(item.operation, Kernel(function, item.kernel.operands, item.kernel.effect), item.call, item.node)


def _finisher(dtype: ElementType, rounds: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    if dtype.is_float:
        return rounded if rounds and dtype is ElementType.FP16 else _same
    kind = dtype.computed
    return lambda value: value.to(kind)


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


def _overwrite(state: torch.Tensor, value: torch.Tensor) -> None:
    state.copy_(value)
