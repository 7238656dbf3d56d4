"""Pieces of a Core ML package, saved and run alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Program

from exporter.targets.coreml.graph import FunctionGraph
from exporter.targets.coreml.interpreter.machine import Interpreter, Precision
from exporter.targets.coreml.package import save_package

Values = dict[str, np.ndarray]


def run_piece(
    folder: Path,
    build: Callable[[FunctionGraph], Any],
    states: Values,
    position: int = 0,
    precision: Precision = Precision.FP16,
) -> tuple[np.ndarray, Values]:
    """Saves a function that `build` writes, runs it once on these states and gives its result and the states afterwards. States are
    how a piece gets its numbers: `value(graph, name)` reads one."""
    program = Program()
    with FunctionGraph(
        program, "piece", {"position": (1,)}, {name: array.shape for name, array in states.items()}
    ) as graph:
        graph.output(build(graph), "result")
    save_package(program, "piece", {}, folder / "piece.mlpackage")
    machine = Interpreter.open(folder / "piece.mlpackage", precision)
    held = {name: np.asarray(array, machine.make_state()[name].dtype) for name, array in states.items()}
    result = machine.run("piece", {"position": np.array([position], np.int32)}, held)["result"]
    return np.array(result), held


def value(graph: FunctionGraph, name: str) -> Any:
    return graph.node("read_state", input=graph.input(name))
