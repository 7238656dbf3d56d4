"""Any .mlpackage on the command line: what inspect and verify say, and what they say of a broken one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Run
from coreml_programs import ct, mb, save_program

from coremltools.converters.mil.mil.types.type_int import np_int4_dtype  # isort: skip

from exporter.errors import GateFailed, UsageError
from exporter.targets.coreml.audit import blobs, duplicate_bytes
from exporter.targets.coreml.interpreter.machine import Interpreter, Precision
from exporter.targets.coreml.interpreter.schema import model_messages

WIDTH = 32
TABLE = np.arange(WIDTH * WIDTH, dtype=np.float16).reshape(WIDTH, WIDTH) / 512


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y = log(x table + 1), added to a state."""

    def build(x: Any, total: Any) -> Any:
        y = mb.log(x=mb.matmul(x=x, y=mb.const(val=TABLE, name="table")), epsilon=np.float16(1))
        added = mb.coreml_update_state(state=total, value=mb.add(x=mb.read_state(input=total), y=y))
        return mb.identity(x=added, name="y")

    folder = tmp_path_factory.mktemp("package")
    return save_program(folder, build, {"x": ((1, WIDTH), "float16")}, {"total": (1, WIDTH)})


@pytest.fixture
def copied(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copied.mlpackage"))


def data(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML"


def test_inspect_says_what_is_in_a_package(run: Run, package: Path) -> None:
    outcome = run("inspect", str(package))
    assert (outcome.code, outcome.err) == (0, "")
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert "specification version 9, default function main" in lines
    assert "weights 2.18 kB in files, 1 blobs" in lines
    assert "fp16 2.05 kB in 1 blobs" in lines
    assert "stored twice 0 B" in lines
    assert "state total fp16 [1, 32], 64 B, 1 writes" in lines
    assert "operators read_state 2, add 1, identity 1, log 1, matmul 1, write_state 1" in lines


def test_inspect_as_json_holds_every_blob(run: Run, package: Path) -> None:
    facts = json.loads(run("inspect", str(package), "--json").out)
    (blob,) = facts["weights"]["blobs"]
    assert (blob["dtype"], blob["bytes"], blob["functions"]) == ("fp16", TABLE.nbytes, ["main"])
    function = facts["functions"]["main"]
    assert function["inputs"]["x"] == {"dtype": "fp16", "shape": [1, 32], "bytes": 64, "default_shape": [1, 32]}
    assert function["states"]["total"]["writes"] == 1
    assert facts["lacking_operators"] == {}


def test_verify_runs_a_package_that_it_knows_nothing_of(run: Run, package: Path) -> None:
    outcome = run("verify", str(package), "--json")
    result = json.loads(outcome.out)
    assert (outcome.code, result["blobs"], result["weight_bytes"]) == (0, 1, TABLE.nbytes)
    assert result["functions"]["main"]["y"]["max_abs"] == 0.0
    assert set(result["functions"]["main"]) == {"y", "state total"}
    assert "y: finite, at most 0; fp16 differs by 0" in run("verify", str(package)).out


def test_verify_fails_a_package_whose_results_are_not_finite(run: Run, tmp_path: Path) -> None:
    path = save_program(tmp_path, lambda x: mb.real_div(x=x, y=x, name="y"), {"x": ((2,), "float16")})
    outcome = run("verify", str(path))
    assert outcome.code == 4
    assert (
        "function main: y is not finite in fp32; function main: y is not finite in fp16; inputs were zeros"
        in outcome.err
    )


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, int, str, str]] = {
    "no folder": (shutil.rmtree, 2, "copied.mlpackage: does not exist", "pass the .mlpackage folder"),
    "no manifest": (
        lambda path: (path / "Manifest.json").unlink(),
        2,
        "Manifest.json: missing, or not the manifest of a Core ML package",
        "pass the .mlpackage folder",
    ),
    "no model": (
        lambda path: (data(path) / "model.mlmodel").unlink(),
        4,
        "model.mlmodel: not readable",
        "copy the whole",
    ),
    "no weights": (
        lambda path: shutil.rmtree(data(path) / "weights"),
        4,
        "weight.bin: not readable",
        "copy the package",
    ),
    "cut weights": (
        lambda path: truncate(data(path) / "weights/weight.bin", 1000),
        4,
        "weight.bin: the blob at byte 64 ends at 2176, the file at 1000",
        "copy the package again",
    ),
    "cut model": (
        lambda path: truncate(data(path) / "model.mlmodel", 300),
        4,
        "not a Core ML model",
        "copy the package again",
    ),
    "empty model": (
        lambda path: truncate(data(path) / "model.mlmodel", 0),
        2,
        "holds nothing, not an ML Program",
        "convert it",
    ),
}


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_package_is_named_in_one_line(run: Run, copied: Path, name: str, command: str) -> None:
    damage, code, problem, step = DAMAGES[name]
    damage(copied)
    outcome = run(command, str(copied))
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.count("\n") == 1
    assert problem in outcome.err
    assert f"; {step}" in outcome.err


def test_every_lacking_operator_is_named_at_once(run: Run, tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        pooled = mb.max_pool(x=x, kernel_sizes=[2], pad_type="valid", strides=[2])
        return mb.reverse_sequence(x=mb.avg_pool(x=pooled, kernel_sizes=[2], pad_type="valid"), lengths=[1], name="y")

    path = save_program(tmp_path, build, {"x": ((1, 2, 8), "float32")})
    outcome = run("verify", str(path))
    assert outcome.code == 3
    assert f"{path}: the interpreter lacks avg_pool, max_pool, reverse_sequence (function main)" in outcome.err
    assert "the interpreter cannot run this package" in run("inspect", str(path)).out


def test_a_weight_file_outside_the_package_is_refused(run: Run, copied: Path) -> None:
    model = data(copied) / "model.mlmodel"
    inside, outside = b"@model_path/weights/weight.bin", b"@model_path/../../../../weight"
    assert len(inside) == len(outside)
    model.write_bytes(model.read_bytes().replace(inside, outside))
    outcome = run("inspect", str(copied))
    assert (outcome.code, "which is outside of it; do not use this package" in outcome.err) == (4, True)


def test_a_manifest_without_a_root_model_is_named(run: Run, copied: Path) -> None:
    (copied / "Manifest.json").write_text('{"rootModelIdentifier": "gone", "itemInfoEntries": []}', encoding="utf-8")
    outcome = run("inspect", str(copied))
    assert (outcome.code, "Manifest.json: names no root model" in outcome.err) == (4, True)


def test_coremltools_itself_is_not_imported_and_prints_nothing(package: Path) -> None:
    script = (
        "import sys; from exporter.cli import main; sys.argv = ['slm-export', 'verify', sys.argv[1], '--json']; main(); "
        "assert 'coremltools' not in sys.modules"
    )
    outcome = subprocess.run([sys.executable, "-c", script, package], capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert json.loads(outcome.stdout)["blobs"] == 1


def test_a_missing_coremltools_is_named(run: Run, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_messages.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = run("inspect", str(package))
    model_messages.cache_clear()
    assert outcome.code == 6
    assert "coremltools is not installed; pip install 'slm-export[coreml]'" in outcome.err


def test_an_index_that_a_table_does_not_have_names_the_operator(tmp_path: Path) -> None:
    table = np.zeros((4, 2), np.float32)
    path = save_program(tmp_path, lambda ids: mb.gather(x=table, indices=ids, name="rows"), {"ids": ((1,), "int32")})
    with pytest.raises(GateFailed, match=r"function main: gather rows failed: .*; check the inputs"):
        Interpreter.open(path).run("main", {"ids": [4]})


def test_a_program_that_contradicts_its_types_is_named(copied: Path, run: Run) -> None:
    path = data(copied) / "model.mlmodel"
    model = model_messages()[0].Model()
    model.ParseFromString(path.read_bytes())
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    (product,) = [operation for operation in block.operations if operation.type == "matmul"]
    product.outputs[0].type.tensorType.dimensions[1].constant.size = 33
    path.write_bytes(model.SerializeToString())
    outcome = run("verify", str(copied))
    assert outcome.code == 4
    assert "is declared fp16[1, 33] and came out as [1, 32]" in outcome.err


@pytest.mark.parametrize(
    ("function", "inputs", "problem"),
    [
        ("mian", {"x": np.zeros((1, WIDTH))}, "unknown function 'mian'; did you mean 'main'?"),
        ("main", {"x": np.zeros((2, WIDTH))}, "input x: has shape [2, 32], wanted fp16[1, 32]"),
        ("main", {}, "input x missing"),
        ("main", {"x": np.zeros((1, WIDTH)), "y": 0}, "unknown input 'y'"),
    ],
)
def test_a_wrong_argument_is_named(package: Path, function: str, inputs: dict[str, Any], problem: str) -> None:
    machine = Interpreter.open(package)
    with pytest.raises(UsageError) as fault:
        machine.run(function, inputs, machine.make_state())
    assert problem in str(fault.value)


def test_a_missing_state_is_named(package: Path) -> None:
    with pytest.raises(UsageError, match="state total missing"):
        Interpreter.open(package).run("main", {"x": np.zeros((1, WIDTH))})


def test_a_state_is_updated_in_the_arrays_that_were_given(package: Path) -> None:
    machine = Interpreter.open(package)
    state = machine.make_state()
    array, one = state["total"], np.ones((1, WIDTH), np.float32)
    first = machine.run("main", {"x": one}, state)["y"].copy()
    second = machine.run("main", {"x": one}, state)["y"]
    assert state["total"] is array
    np.testing.assert_allclose(array, second)
    np.testing.assert_allclose(second, 2 * first, rtol=1e-6)
    np.testing.assert_allclose(first, np.log(one @ TABLE.astype(np.float32) + 1), rtol=1e-5)


def test_functions_share_states_blobs_and_expanded_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (WIDTH, WIDTH)).astype(np_int4_dtype)
    scale = rng.random((WIDTH, 1)).astype(np.float16)

    def append(x: Any, total: Any, position: Any) -> Any:
        """Writes x times a matrix into row `position` of the state, and gives the sum of all rows."""
        weight = mb.constexpr_blockwise_shift_scale(data=codes, scale=scale, name="weight")
        zero, one = np.zeros(1, np.int32), np.int32([WIDTH])
        begin = mb.concat(values=[position, zero], axis=0)
        end = mb.concat(values=[mb.add(x=position, y=np.int32(x.shape[0])), one], axis=0)
        rows = mb.slice_update(x=mb.read_state(input=total), update=mb.linear(x=x, weight=weight), begin=begin, end=end)
        return mb.reduce_sum(x=mb.coreml_update_state(state=total, value=rows), axes=[0], name="y")

    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, count in (("decode", 1), ("prefill", 2)):
        inputs = {"x": ((count, WIDTH), "float16"), "position": ((1,), "int32")}
        half = ct.precision.FLOAT16
        path = save_program(
            tmp_path, append, inputs, {"total": (4, WIDTH)}, ct.PassPipeline.DEFAULT, name, precision=half
        )
        descriptor.add_function(str(path), "main", name)
    descriptor.default_function_name = "decode"
    ct.utils.save_multifunction(descriptor, str(tmp_path / "both.mlpackage"))

    machine = Interpreter.open(tmp_path / "both.mlpackage")
    state, x = machine.make_state(), rng.standard_normal((3, WIDTH)).astype(np.float16).astype(np.float32)
    machine.run("prefill", {"x": x[:2], "position": [0]}, state)
    total = machine.run("decode", {"x": x[2:], "position": [2]}, state)["y"]
    weight = codes.astype(np.float32) * scale.astype(np.float32)
    np.testing.assert_allclose(total, (x @ weight.T).sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state["total"][:3], x @ weight.T, rtol=1e-4, atol=1e-4)
    kept = {
        id(value)
        for compiled in machine._compiled.values()
        for value in compiled.registers
        if isinstance(value, torch.Tensor) and value.shape == weight.shape
    }
    assert len(kept) == 1
    found = blobs(machine.package)
    assert {blob.functions for blob in found if blob.bytes >= WIDTH} == {("decode", "prefill")}
    assert duplicate_bytes(found) == 0


def test_every_value_is_freed_after_its_last_reader(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        first, _ = mb.split(x=mb.exp(x=x), num_splits=2, axis=0)  # the other half is never read
        return mb.add(x=mb.square(x=first), y=first, name="y")

    machine = Interpreter.open(save_program(tmp_path, build, {"x": ((4,), "float32")}))
    compiled, signature = machine._compiled["main"], machine.functions["main"]
    registers = compiled.registers.copy()
    machine._fill_inputs(registers, compiled, signature, {"x": np.zeros(4)})
    machine._execute(compiled, registers, check=False)
    made = {number for step in compiled.steps for number in step.results} | set(compiled.inputs.values())
    assert len(made) == 6
    assert {number for number in made if registers[number] is not None} == set(compiled.outputs.values())


def test_an_output_stays_what_it_was_when_the_state_moves_on(package: Path) -> None:
    machine = Interpreter.open(package)
    state, one = machine.make_state(), np.ones((1, WIDTH), np.float32)
    first = machine.run("main", {"x": one}, state)["y"]
    before = first.copy()
    machine.run("main", {"x": one}, state)
    np.testing.assert_array_equal(first, before)


def test_fp16_rounds_every_result(package: Path) -> None:
    x = np.random.default_rng(0).random((1, WIDTH)).astype(np.float32)
    machine = Interpreter.open(package, Precision.FP16)
    actual = machine.run("main", {"x": x}, machine.make_state())["y"]
    product = (x.astype(np.float16).astype(np.float32) @ TABLE.astype(np.float32)).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(actual, np.log(product + 1).astype(np.float16).astype(np.float32))
