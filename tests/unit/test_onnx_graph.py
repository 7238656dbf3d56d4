"""Pieces of the ONNX graph, run alone: stored matrices, the nibble trick, constants stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import normal

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx_ir", reason="the onnx extra is not installed")

import onnx_ir as ir
import onnxruntime

from exporter.decoder.spec import AttentionSpec
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat, WeightFormat
from exporter.quantize.int4 import quantize_nearest
from exporter.quantize.kv_codec import ChannelConstants, LayerKvConstants
from exporter.targets.onnx.attention import CachedAttention
from exporter.targets.onnx.graph import GraphBuilder, Value
from exporter.targets.onnx.weights import StoredMatrix

FORMATS = [
    pytest.param(WeightFormat(bits, group, scale), columns, id=f"int{bits}-{group}-{scale.value}-{columns}")
    for bits, group, scale, columns in (
        (4, 16, ScaleFormat.FP16, 64),
        (4, 32, ScaleFormat.FP16, 96),
        (4, 32, ScaleFormat.LPBQ, 172),
        (4, 128, ScaleFormat.FP16, 200),
        (8, 96, ScaleFormat.FP16, 96),
        (8, 200, ScaleFormat.FP16, 200),
    )
]


def run(graph: GraphBuilder, result: Value, kind: ir.DataType, folder: Path, **inputs: np.ndarray) -> np.ndarray:
    graph.output(result, "result", kind, [None] * 4 if kind is ir.DataType.UINT8 else [None] * 3)
    graph.save(folder / "piece.onnx")
    session = onnxruntime.InferenceSession(str(folder / "piece.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, inputs)
    return found


@pytest.mark.parametrize(("weight_format", "columns"), FORMATS)
def test_a_stored_matrix_multiplies_as_its_codes_say(weight_format: WeightFormat, columns: int, tmp_path: Path) -> None:
    matrices = [quantize_nearest(normal(seed, 24, columns), weight_format) for seed in (1, 2)]
    graph = GraphBuilder("piece")
    value = graph.input("value", ir.DataType.FLOAT, (1, "S", columns))
    stored = StoredMatrix(graph, "matrix", matrices, activation_bits=32)
    rows = normal(3, 1, 5, columns)
    found = run(graph, stored.multiply(value, "product"), ir.DataType.FLOAT, tmp_path, value=rows.numpy())
    expected = rows @ torch.cat([matrix.dequantize() for matrix in matrices]).T
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)


@pytest.mark.parametrize(("weight_format", "columns"), FORMATS)
def test_rows_are_looked_up_exactly(weight_format: WeightFormat, columns: int, tmp_path: Path) -> None:
    matrix = quantize_nearest(normal(1, 24, columns), weight_format)
    graph = GraphBuilder("piece")
    index = graph.input("index", ir.DataType.INT64, (1, "S"))
    stored = StoredMatrix(graph, "table", [matrix], activation_bits=32)
    chosen = torch.tensor([3, 23, 0])
    found = run(graph, stored.rows(index), ir.DataType.FLOAT, tmp_path, index=chosen[None].numpy())
    assert np.array_equal(found[0], matrix.rows(chosen).numpy())


def test_high_nibbles_of_all_bytes_are_exact(tmp_path: Path) -> None:
    graph = GraphBuilder("piece")
    packed = graph.input("packed", ir.DataType.UINT8, (1, 1, 1, 256))
    constants = ChannelConstants.identity(1, 8)
    attention = CachedAttention(
        graph,
        0,
        AttentionSpec(1, 1, 8, 1.0, None),
        KvFormat(4, KvScaling.PER_TOKEN),
        LayerKvConstants(constants, constants),
        1,
    )
    every = np.arange(256, dtype=np.uint8)[None, None, None]
    found = run(graph, attention._high_nibbles(packed), ir.DataType.UINT8, tmp_path, packed=every)
    assert np.array_equal(found, every >> 4)


def test_a_constant_is_stored_once_and_a_node_never_takes_its_name() -> None:
    graph = GraphBuilder("piece")
    first = graph.constant("gain", np.ones(3, np.float32))
    assert graph.constant("gain", np.zeros(3, np.float32)) is first
    assert graph.node("Neg", first, name="gain").name != "gain"
