"""Programs that coremltools makes without a word of warning and that do not do what their source says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from coreml_programs import save_program
from torch import nn

from tests.coreml_frontend import ct, mb, optimize, types

LAYERS, SLOTS, WIDTH = 2, 8, 32


class Cache(nn.Module):
    """Writes its input into one slot of each layer, and gives the sum over all slots. `by_index` chooses how the write is spelled."""

    def __init__(self, by_index: bool) -> None:
        super().__init__()
        self.by_index = by_index
        self.register_buffer("cache", torch.zeros(LAYERS, SLOTS, WIDTH))

    def forward(self, x: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
        """x [1, WIDTH], slot int32 [1]."""
        for layer in range(LAYERS):
            if self.by_index:
                self.cache[layer, slot] = x
            else:
                start = slot[0]
                self.cache[layer : layer + 1, start : start + 1, :] = x.unsqueeze(0)
        return self.cache.sum(1)


def traced_cache(folder: Path, by_index: bool) -> Path:
    example = (torch.ones(1, WIDTH), torch.zeros(1, dtype=torch.int32))
    traced = torch.jit.trace(Cache(by_index).eval(), example, check_trace=False)
    model = ct.convert(
        traced,
        inputs=[ct.TensorType("x", (1, WIDTH), dtype=np.float16), ct.TensorType("slot", (1,), dtype=np.int32)],
        outputs=[ct.TensorType("y", dtype=np.float16)],
        states=[ct.StateType(ct.TensorType(shape=(LAYERS, SLOTS, WIDTH), dtype=np.float16), name="cache")],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    path = folder / f"traced_{by_index}.mlpackage"
    model.save(str(path))
    return path


def state_read_twice(folder: Path, merging: bool) -> Path:
    """Adds x to the state, reads the state again and gives what it read. With coremltools' usual passes the two reads become one."""

    def build(x: Any, total: Any) -> Any:
        before = mb.read_state(input=total)
        mb.coreml_update_state(state=total, value=mb.add(x=before, y=x))
        return mb.mul(x=mb.read_state(input=total), y=np.float16(2), name="y")

    passes = ct.PassPipeline.DEFAULT
    if not merging:
        passes.remove_passes(["common::remove_redundant_ops"])
    inputs = {"x": ((4,), "float16")}
    half = ct.precision.FLOAT16
    return save_program(folder, build, inputs, {"total": (4,)}, passes, f"merging_{merging}", precision=half)


ANGLES = np.outer(np.arange(64), 100.0 ** (-np.arange(32) / 32))


def rotary_model() -> Any:
    """One matrix, and a table of cosines by position that a rotation would use."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 32)).astype(np.float16)

    @mb.program(
        input_specs=[
            mb.TensorSpec((1, 32), dtype=types.fp16),
            mb.TensorSpec((1,), dtype=types.int32),
        ],
        opset_version=ct.target.iOS18,
    )
    def program(x: Any, position: Any) -> Any:
        cosines = mb.const(val=np.cos(ANGLES).astype(np.float16), name="cosines")
        angle = mb.gather(x=cosines, indices=position, axis=0)
        return mb.linear(x=mb.mul(x=x, y=angle), weight=mb.const(val=weight, name="projection"), name="y")

    return ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )


def saved(model: Any, path: Path) -> Path:
    model.save(str(path))
    return path


def quantized_by_global_config(model: Any) -> Any:
    config = optimize.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=32, weight_threshold=0
    )
    return optimize.linear_quantize_weights(model, config=optimize.OptimizationConfig(global_config=config))


def palettized(model: Any, per_channel_scale: bool) -> Any:
    config = optimize.OpPalettizerConfig(
        mode="kmeans",
        nbits=4,
        granularity="per_grouped_channel",
        group_size=16,
        num_kmeans_workers=1,
        weight_threshold=0,
        enable_per_channel_scale=per_channel_scale,
    )
    return optimize.palettize_weights(model, config=optimize.OptimizationConfig(global_config=config))
