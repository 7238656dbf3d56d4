"""Packages made by coremltools alone, run by the interpreter, against torch with the constants that the package holds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.coreml_frontend import accept_new_numpy  # first: it skips where coremltools is absent

from exporter.targets.coreml.audit import compressed_constants, state_writes  # isort: skip
from exporter.targets.coreml.interpreter.machine import Interpreter, Precision  # isort: skip
from traced_decoder import LAYERS, SLOTS, STATES, VOCABULARY, Decoder, compressions, decoder, exported, traced  # isort: skip

CHUNKS = (4, 1, 1, 3, 1)
TOLERANCE = 3e-5
"""Logits are of the order of 10, computed in float32 in another order."""


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        accept_new_numpy(patch)
        yield traced()


def dense(operation: Any) -> Any:
    """What coremltools expands an operation to, with scales and tables in float32: fp16 results would be rounded once more."""
    if operation.op_type == "const":
        return operation.outputs[0].val
    expand = type(operation).decompress
    return expand(**{name: _parameter(operation, name) for name in inspect.signature(expand).parameters})


def _parameter(operation: Any, name: str) -> Any:
    variable = operation.inputs.get(name)
    if variable is None:
        return None
    value = variable.val
    if value is None:
        value = dense(variable.op)
        if isinstance(value, tuple):
            value = value[variable.op.outputs.index(variable)]
    return value.astype(np.float32) if np.asarray(value).dtype == np.float16 else value


def with_constants_of(model: Any, reference: Decoder) -> Decoder:
    """The reference with every parameter and table replaced by what the converted model holds."""
    found = {}
    for operation in model._mil_program.functions["main"].operations:
        if operation.op_type == "const" or operation.op_type.startswith("constexpr_"):
            found[operation.outputs[-1].name] = operation
    for name, tensor in reference.state_dict(keep_vars=True).items():
        stem = f"{name.replace('.', '_')}_to_fp16"
        makers = [key for key in found if key == stem or key.startswith(f"{stem}_")]
        if name in STATES:
            continue
        assert makers, f"{name} is not in the package"
        with torch.no_grad():
            tensor.copy_(torch.tensor(dense(found[max(makers, key=lambda key: _depth(found[key]))]).astype(np.float32)))
    return reference


def _depth(operation: Any) -> int:
    """How many constexpr operations end in this one: the last of a chain gives the weight."""
    if operation.op_type == "const":
        return 0
    makers = [variable.op for variable in operation.inputs.values() if variable.op is not None]
    return 1 + max(_depth(maker) for maker in makers)


def largest_difference(path: Path, reference: Decoder, precision: Precision = Precision.FP32) -> float:
    """Over several chunks, so that every later one reads what earlier ones wrote."""
    machine, generator = Interpreter.open(path, precision), torch.Generator().manual_seed(1)
    state, end, worst = machine.make_state(), 0, 0.0
    for count in CHUNKS:
        ids = torch.randint(0, VOCABULARY, (1, count), generator=generator, dtype=torch.int32)
        end += count
        mask = torch.full((count, end), -1e4).triu(end - count + 1)[None, None]
        with torch.no_grad():
            expected = reference(ids, mask)
        actual = machine.run("main", {"ids": ids.numpy(), "mask": mask.numpy()}, state)["logits"]
        worst = max(worst, float(np.abs(actual - expected.numpy()).max()))
    for name in STATES:
        np.testing.assert_allclose(
            state[name], getattr(reference, name), atol=0.1 if precision is Precision.FP16 else 1e-5
        )
    return worst


def test_a_traced_decoder_gives_the_logits_of_torch(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "traced.mlpackage"
    model.save(str(path))
    assert largest_difference(path, with_constants_of(model, decoder())) < TOLERANCE
    rounded = largest_difference(path, with_constants_of(model, decoder()), Precision.FP16)
    assert 1e-4 < rounded < 0.2
    machine = Interpreter.open(path)
    assert state_writes(machine.package.program.functions["main"]) == dict.fromkeys(STATES, LAYERS)


@pytest.mark.parametrize("name", compressions())
def test_a_compressed_decoder_gives_the_logits_of_torch(model: Any, tmp_path: Path, name: str) -> None:
    compressed, path = compressions()[name](model), tmp_path / "compressed.mlpackage"
    compressed.save(str(path))
    function = Interpreter.open(path).package.program.functions["main"]
    assert len(compressed_constants(function)) >= 6 * LAYERS + 1
    assert largest_difference(path, with_constants_of(compressed, decoder())) < TOLERANCE


def test_an_exported_decoder_gives_the_logits_of_torch(tmp_path: Path) -> None:
    model, path = exported(), tmp_path / "exported.mlpackage"
    model.save(str(path))
    machine, reference = Interpreter.open(path), decoder(blend=True).half().float()
    (signature,) = machine.functions.values()
    state, generator = machine.make_state(), torch.Generator().manual_seed(1)
    for position in range(6):
        ids = torch.randint(0, VOCABULARY, (1, 1), generator=generator, dtype=torch.int32)
        slots = torch.zeros(1, SLOTS)
        slots[0, position] = 1
        mask = torch.where(torch.arange(SLOTS) <= position, 0.0, -1e4)[None, None, None]
        with torch.no_grad():
            expected = reference(ids, mask, slots)
        values = dict(zip(signature.inputs, (ids.numpy(), mask.numpy(), slots.numpy()), strict=True))
        actual = machine.run("main", values, state)["logits"]
        np.testing.assert_allclose(actual, expected, atol=TOLERANCE)
