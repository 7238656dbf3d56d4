"""Small ML Programs made with coremltools, saved as packages. Importing coremltools takes seconds: only tests that build programs do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.coreml_frontend import Function, Program, ct, mb, types

__all__ = ["ct", "described", "mb", "save_program"]

MIL_TYPES = {
    "float16": types.fp16,
    "float32": types.fp32,
    "int32": types.int32,
    "bool": types.bool,
    "int8": types.int8,
}


def save_program(
    folder: Path,
    build: Callable[..., Any],
    inputs: Mapping[str, tuple[Sequence[Any], str]],
    states: Mapping[str, Sequence[int]] | None = None,
    passes: Any = None,
    name: str = "model",
    target: Any = ct.target.iOS18,
    precision: Any = ct.precision.FLOAT32,
) -> Path:
    """Saves the program that `build` makes of placeholders named as `inputs` (shape and numpy type) and `states` (shapes of fp16)."""
    placeholders = {key: mb.placeholder(shape, dtype=MIL_TYPES[dtype]) for key, (shape, dtype) in inputs.items()}
    placeholders |= {key: mb.state_tensor_placeholder(shape, dtype=types.fp16) for key, shape in (states or {}).items()}
    program = Program()
    with Function(placeholders, opset_version=target) as function:
        outputs = build(**function.inputs)
        function.set_outputs(list(outputs) if isinstance(outputs, list | tuple) else [outputs])
        program.add_function("main", function)
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=precision,
        pass_pipeline=passes or ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    path = folder / f"{name}.mlpackage"
    model.save(str(path))
    return path


def described(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[Sequence[int], str]]:
    return {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
