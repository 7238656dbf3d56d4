"""Checks of a Core ML package of which nothing is known but the package itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import GateFailed
from exporter.progress import StageDisplay
from exporter.targets.coreml.audit import blobs
from exporter.targets.coreml.interpreter.machine import Interpreter, State
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.interpreter.precision import Precision
from exporter.targets.coreml.interpreter.signature import Signature

Values = dict[str, np.ndarray]


def verify_package(path: Path, display: StageDisplay) -> dict[str, Any]:
    """Reads every blob, then calls every function once on zeros, with values kept in fp32 and rounded to fp16.

    Raises GateFailed when the package is broken, contradicts itself or gives a value that is not finite; OperatorsLacking, UsageError
    and ToolchainMissing as `Interpreter.open` does.
    """
    with display.stage("integrity") as stage:
        package = Package.open(path)
        found = blobs(package)
        stage.note = f"{len(found)} blobs in range"
    results = {}
    for precision in Precision:
        with display.stage(precision.value) as stage:
            results[precision] = _run_all(Interpreter(package, precision))
            stage.note = f"{len(results[precision])} functions ran"
    problems = [
        f"function {function}: {name} is not finite in {precision.value}"
        for precision, functions in results.items()
        for function, values in functions.items()
        for name, value in values.items()
        if not np.isfinite(value).all()
    ]
    if problems:
        raise GateFailed(f"{path}: {'; '.join(problems)}", "inputs were zeros: look for a division or a logarithm of 0")
    return {
        "package": str(path),
        "blobs": len(found),
        "weight_bytes": sum(blob.bytes for blob in found),
        "functions": {
            name: _difference(values, results[Precision.FP16][name]) for name, values in results[Precision.FP32].items()
        },
    }


def _run_all(machine: Interpreter) -> dict[str, Values]:
    """Outputs of every function on zeros and a fresh state, and what it left in the state."""
    results = {}
    for name, signature in machine.functions.items():
        state = machine.make_state()
        results[name] = {**machine.run(name, zeros(signature), state), **_named_states(signature, state)}
    return results


def zeros(signature: Signature) -> Values:
    """Inputs of zeros, in the default shapes of flexible inputs."""
    return {
        name: np.zeros(signature.default_shape(name), np.float32 if declared.dtype.is_float else np.int32)
        for name, declared in signature.inputs.items()
    }


def _named_states(signature: Signature, state: State) -> Values:
    return {f"state {name}": state[name] for name in signature.states}


def _difference(full: Values, half: Values) -> dict[str, Any]:
    """Of every output and state: its largest value, and how far rounding to fp16 moves it."""
    return {
        name: {
            "max_abs": float(np.abs(value).max(initial=0)),
            "max_abs_difference": float(np.abs(value - half[name]).max(initial=0)),
        }
        for name, value in ((name, value.astype(np.float64)) for name, value in full.items())
    }
