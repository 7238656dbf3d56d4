"""Inputs whose sizes are open: ranges and enumerations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Run
from torch import nn

from exporter.errors import UsageError
from exporter.targets.coreml.interpreter.machine import Interpreter
from tests.coreml_frontend import accept_new_numpy, ct


class Halves(nn.Module):
    """x [1, T, 4] with its time axis reversed in pairs: needs T at run time in a shape, a slice and a range."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[1] // 2
        pairs = x.reshape(1, count, 2, 4).flip(2).reshape(1, -1, 4)
        return pairs + torch.arange(x.shape[1]).float().reshape(1, -1, 1)


def reference(x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return Halves()(torch.from_numpy(x)).numpy()


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def save_with(shape: Any) -> Path:
        accept_new_numpy(monkeypatch)
        traced = torch.jit.trace(Halves(), torch.zeros(1, 6, 4))
        model = ct.convert(
            traced,
            inputs=[ct.TensorType("x", shape)],
            outputs=[ct.TensorType("y")],
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        path = tmp_path / "flexible.mlpackage"
        model.save(str(path))
        return path

    return save_with


def test_any_size_of_a_range_runs(save: Any, run: Run) -> None:
    path = save((1, ct.RangeDim(2, 8, 4), 4))
    machine = Interpreter.open(path)
    assert machine.functions["main"].inputs["x"].shape == (1, None, 4)
    assert machine.functions["main"].default_shape("x") == (1, 4, 4)
    for count in (2, 8, 6):
        x = np.random.default_rng(count).random((1, count, 4), np.float32)
        np.testing.assert_allclose(machine.run("main", {"x": x})["y"], reference(x), rtol=1e-6)
    with pytest.raises(UsageError, match=r"has shape \[1, 10, 4\], wanted fp32 1 x 2\.\.8 x 4"):
        machine.run("main", {"x": np.zeros((1, 10, 4))})
    facts = json.loads(run("inspect", str(path), "--json").out)["functions"]["main"]["inputs"]["x"]
    assert (facts["shape"], facts["default_shape"], facts["allowed"]) == ([1, None, 4], [1, 4, 4], "1 x 2..8 x 4")


def test_only_the_enumerated_shapes_run(save: Any, run: Run) -> None:
    path = save(ct.EnumeratedShapes([(1, 2, 4), (1, 6, 4)], default=(1, 6, 4)))
    machine = Interpreter.open(path)
    for count in (2, 6):
        x = np.random.default_rng(count).random((1, count, 4), np.float32)
        np.testing.assert_allclose(machine.run("main", {"x": x})["y"], reference(x), rtol=1e-6)
    with pytest.raises(UsageError, match=r"wanted fp32 one of \[1, 6, 4\], \[1, 2, 4\]"):
        machine.run("main", {"x": np.zeros((1, 4, 4))})
    outcome = run("verify", str(path))
    assert (outcome.code, outcome.err) == (0, "")
