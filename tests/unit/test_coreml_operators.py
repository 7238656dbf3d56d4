"""Every operator of the interpreter against coremltools' own constant folding, or numpy and torch where it has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from coreml_operator_cases import CASES, Case
from coreml_programs import described, mb, save_program

from exporter.targets.coreml.interpreter.machine import Interpreter
from exporter.targets.coreml.interpreter.operators.base import OPERATORS


def _inputs(index: int, case: Case) -> dict[str, np.ndarray]:
    arrays = {}
    for name, value in case.tensors.items():
        for place, array in enumerate(value if isinstance(value, list) else [value]):
            arrays[f"c{index}_{name}_{place}"] = np.asarray(array)
    return arrays


def _call(index: int, case: Case, inputs: Mapping[str, Any]) -> Any:
    """The operation on values of the program, or on constants."""
    parameters: dict[str, Any] = {}
    for name, value in case.tensors.items():
        values = [inputs[f"c{index}_{name}_{place}"] for place in range(len(value) if isinstance(value, list) else 1)]
        parameters[name] = values if isinstance(value, list) else values[0]
    return getattr(mb, case.operator)(**parameters, **case.settings)


def _as_input(array: np.ndarray) -> np.ndarray:
    """Functions take no bools and no small integers: those are cast inside the program."""
    return array.astype(np.int32) if array.dtype in (np.bool_, np.int8) else array


def _restored(name: str, variable: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    kind = arrays[name].dtype
    if kind in (np.bool_, np.int8):
        variable = mb.cast(x=variable, dtype=str(kind))
    return mb.squeeze(x=variable) if arrays[name].ndim == 0 else variable


def _named(variable: Any, name: str) -> Any:
    if variable.dtype.__name__ == "bool":
        return mb.cast(x=variable, dtype="int32", name=name)
    return mb.identity(x=variable, name=name)


@dataclass(frozen=True)
class Results:
    """What the interpreter and the reference say of each case."""

    actual: list[list[np.ndarray]]
    expected: list[list[np.ndarray]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All cases in one program: building and opening one takes longer than running them all."""
    arrays = {name: array for index, case in enumerate(CASES) for name, array in _inputs(index, case).items()}
    names: list[list[str]] = []
    folded: list[list[np.ndarray]] = []

    def build(**variables: Any) -> list[Any]:
        restored = {name: _restored(name, variable, arrays) for name, variable in variables.items()}
        outputs = []
        for index, case in enumerate(CASES):
            made = _call(index, case, restored)
            made = list(made) if isinstance(made, tuple | list) else [made]
            names.append([f"case_{index}_{place}" for place in range(len(made))])
            outputs += [_named(item, name) for item, name in zip(made, names[-1], strict=True)]
            if case.expected is None:
                copies = {
                    name: array.copy() for name, array in arrays.items()
                }  # some foldings write into their operand
                constant = _call(index, case, copies)
                folded.append([item.val for item in (constant if isinstance(constant, tuple | list) else [constant])])
            else:
                reference = case.expected(*_inputs(index, case).values())
                folded.append(list(reference) if isinstance(reference, tuple) else [reference])
        return outputs

    inputs = {name: np.atleast_1d(_as_input(array)) for name, array in arrays.items()}
    path = save_program(tmp_path_factory.mktemp("operators"), build, described(inputs))
    machine = Interpreter.open(path)
    outputs = machine.run("main", inputs)
    return Results([[outputs[name] for name in each] for each in names], folded)


@pytest.mark.parametrize(
    "index", range(len(CASES)), ids=[f"{number}-{case.operator}" for number, case in enumerate(CASES)]
)
def test_an_operator_gives_what_the_reference_gives(results: Results, index: int) -> None:
    for actual, expected in zip(results.actual[index], results.expected[index], strict=True):
        expected = np.asarray(expected)
        assert expected.dtype != object, "nothing was folded"
        assert actual.shape == (expected.shape or actual.shape)
        np.testing.assert_allclose(actual, expected.astype(np.float64), rtol=2e-5, atol=2e-6)


def test_every_operator_has_a_case() -> None:
    assert set(OPERATORS) - {case.operator for case in CASES} == set()


def test_the_interpreter_has_no_operator_that_mil_does_not_know() -> None:
    assert [name for name in OPERATORS if not hasattr(mb, name)] == []
