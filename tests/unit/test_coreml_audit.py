"""Each miscompilation that coremltools makes in silence is seen by an audit, by the interpreter, or by both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_faults import (
    ANGLES,
    LAYERS,
    SLOTS,
    WIDTH,
    palettized,
    quantized_by_global_config,
    rotary_model,
    saved,
    state_read_twice,
    traced_cache,
)
from coreml_programs import mb, save_program

from exporter.targets.coreml.audit import (
    blobs,
    compressed_constants,
    duplicate_bytes,
    duplicates,
    operator_histogram,
    stale_state_reads,
    state_writes,
)
from exporter.targets.coreml.interpreter.machine import Interpreter
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.interpreter.program import Function
from tests.coreml_frontend import accept_new_numpy


def main_function(path: Path) -> Function:
    return Package.open(path).program.functions["main"]


@pytest.mark.parametrize("by_index", [False, True], ids=["slice assignment", "index assignment"])
def test_a_dropped_state_write_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_index: bool) -> None:
    accept_new_numpy(monkeypatch)
    path = traced_cache(tmp_path, by_index)
    writes = state_writes(main_function(path))
    machine = Interpreter.open(path)
    state = machine.make_state()
    outputs = [machine.run("main", {"x": np.full((1, WIDTH), slot + 1), "slot": [slot]}, state)["y"] for slot in (0, 1)]
    if by_index:
        assert writes == {"cache": 0}
        assert np.abs(state["cache"]).max() == 0
    else:
        assert writes == {"cache": LAYERS}
        np.testing.assert_array_equal(state["cache"][:, :3, 0], [[1, 2, 0]] * LAYERS)
        np.testing.assert_array_equal(outputs[1], np.full((LAYERS, WIDTH), 3))
    assert state["cache"].shape == (LAYERS, SLOTS, WIDTH)


@pytest.mark.parametrize("merging", [False, True])
def test_merged_reads_of_a_state_are_seen(tmp_path: Path, merging: bool) -> None:
    path = state_read_twice(tmp_path, merging)
    machine = Interpreter.open(path)
    result = machine.run("main", {"x": [1, 2, 3, 4]}, machine.make_state())["y"]
    stale = stale_state_reads(main_function(path))
    if merging:
        assert stale == {"total": ("y",)}
        np.testing.assert_array_equal(result, [0, 0, 0, 0])
    else:
        assert stale == {}
        np.testing.assert_array_equal(result, [2, 4, 6, 8])


def test_a_table_that_a_global_configuration_quantized_is_seen(tmp_path: Path) -> None:
    model = rotary_model()
    plain = saved(model, tmp_path / "plain.mlpackage")
    quantized = saved(quantized_by_global_config(model), tmp_path / "quantized.mlpackage")
    assert compressed_constants(main_function(plain)) == []
    found = compressed_constants(main_function(quantized))
    assert [(item.shape, item.users) for item in found if "linear" not in item.users] == [(ANGLES.shape, ("gather",))]
    inputs = {"x": np.ones((1, 32)), "position": [7]}
    results = [Interpreter.open(path).run("main", inputs)["y"] for path in (plain, quantized)]
    assert np.abs(results[0] - results[1]).max() > 0.1


def test_tables_larger_than_what_they_save_are_seen(tmp_path: Path) -> None:
    model = rotary_model()
    small, exploded = (
        compressed_constants(main_function(saved(palettized(model, scaled), tmp_path / f"{scaled}.mlpackage")))
        for scaled in (False, True)
    )
    assert [item.exploded for item in small] == [False, False]
    assert any(item.exploded for item in exploded)
    (worst,) = [item for item in exploded if item.users == ("linear",)]
    assert worst.stored_bytes > worst.dense_bytes == 2 * 64 * 32


def test_blobs_stored_twice_are_counted(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)

    def build(x: Any) -> Any:
        first, second = mb.const(val=table, name="first"), mb.const(val=table.copy(), name="second")
        return mb.matmul(x=mb.matmul(x=x, y=first), y=second, name="y")

    path = save_program(tmp_path, build, {"x": ((1, 64), "float32")})
    found = blobs(Package.open(path))
    assert [blob.functions for group in duplicates(found) for blob in group] == [("main",), ("main",)]
    assert duplicate_bytes(found) == table.nbytes
    assert operator_histogram(main_function(path)) == {"matmul": 2}
