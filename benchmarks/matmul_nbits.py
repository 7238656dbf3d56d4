"""Throughput of ONNX Runtime's MatMulNBits for one token, on one thread: what bounds decoding at short contexts.

    python -m benchmarks.matmul_nbits

On x86, ONNX Runtime 1.31 repacks a matrix when a session loads it: beside 4 bits per weight it keeps a float32 scale and a float32 sum
per block, whatever the file stores. `moved` counts those.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from exporter.quantize.formats import ScaleFormat, WeightFormat
from exporter.quantize.int4 import quantize_nearest
from exporter.targets.onnx.graph import GraphBuilder
from exporter.targets.onnx.weights import StoredMatrix

SHAPES = {
    "gate and up, width 1,024": (5632, 1024),
    "head, 32,000 x 1,024": (32000, 1024),
    "head, 128,256 x 2,048": (128256, 2048),
}


PACKED_BYTES_PER_BLOCK = 4 + 4
"""Scale and sum, float32 each."""


def main() -> None:
    torch.set_num_threads(1)
    print(f"reading memory on one thread: {read_bytes_per_second() / 1e9:.1f} GB/s")
    for name, (rows, columns) in SHAPES.items():
        for group in (32, 128):
            seconds = token_seconds(rows, columns, group)
            moved = rows * columns * (1 / 2 + PACKED_BYTES_PER_BLOCK / group)
            print(f"{name:<26} groups of {group:<4} {seconds * 1e3:7.3f} ms  {moved / seconds / 1e9:5.1f} GB/s moved")


def read_bytes_per_second() -> float:
    """Best of 8 passes over 512 MiB."""
    block, times = torch.ones(1 << 27), []
    for _ in range(8):
        start = time.process_time()
        block.sum()
        times.append(time.process_time() - start)
    return block.nbytes / min(times)


def token_seconds(rows: int, columns: int, group: int) -> float:
    """Median CPU time of 40 products."""
    matrix = quantize_nearest(torch.randn(rows, columns), WeightFormat(4, group, ScaleFormat.FP16))
    graph = GraphBuilder("product")
    value = graph.input("value", ir.DataType.FLOAT, (1, 1, columns))
    product = StoredMatrix(graph, "matrix", [matrix], activation_bits=8).multiply(value, "product")
    graph.output(product, "result", ir.DataType.FLOAT, (1, 1, rows))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as scratch:
        graph.save(Path(scratch) / "product.onnx")
        session = onnxruntime.InferenceSession(
            str(Path(scratch) / "product.onnx"), options, providers=["CPUExecutionProvider"]
        )
        given, times = {"value": np.random.default_rng(0).standard_normal((1, 1, columns), np.float32)}, []
        for _ in range(40):
            start = time.process_time()
            session.run(None, given)
            times.append(time.process_time() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
