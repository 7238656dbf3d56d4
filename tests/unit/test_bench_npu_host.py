"""The C++ host of NPU programs against the Python one that every export is verified with: the same codes, call by call."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from device_tests import harness
from exporter.targets.executorch.qnn.driver import EmbeddingTable
from exporter.targets.executorch.qnn.host import Host, HostLayer, HostLayout

RUNNERS = Path(harness.__file__).parent / "runners"
HIDDEN, VOCAB, CHUNK, GROUP = 20, 50, 6, 8
CALLS = (6, 6, 1, 1, 4, 1, 6, 6, 6, 1, 1, 1)
"""Tokens of each call; one token alone is a call of the method for one."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    found = tmp_path_factory.mktemp("npu") / "npu_host_check"
    source = Path(__file__).with_name("npu_host_check.cpp")
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{RUNNERS}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(found)], check=True)
    return found


def layout(bits: int, sinks: int) -> HostLayout:
    """A full layer and a windowed one whose ring wraps within the calls."""
    ring, zero = 10 + CHUNK + sinks, 1 << (bits - 1)
    full = HostLayer(64, None, 0, "mask_full_64", 2, 4, zero, zero)
    windowed = HostLayer(ring, 10, sinks, f"mask_window10_{ring}", 2, 4, zero, zero)
    frequencies = tuple(float(value) for value in 10000.0 ** -np.linspace(0, 0.5, 2, dtype=np.float32))
    return HostLayout(
        64, CHUNK, HIDDEN, VOCAB, 1.7e-4, 32000, 0.01, 100, frequencies, bits, GROUP, (full, windowed, full)
    )


def table(bits: int) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(3)
    scales = drawn.uniform(1e-3, 0.2, (VOCAB, -(-HIDDEN // GROUP))).astype(np.float16)
    scales[0, 0], scales[1, 0] = np.float16(1e-6), np.float16(0.0)  # one below the normal numbers of fp16
    if bits == 8:
        return {"codes": drawn.integers(-128, 128, (VOCAB, HIDDEN), np.int8), "scales": scales}
    return {"codes": drawn.integers(0, 256, (VOCAB, HIDDEN // 2), np.uint8), "scales": scales}


def expected(shape: HostLayout, stored: dict[str, np.ndarray], calls: list[dict], codes: bytes) -> Iterator[np.ndarray]:
    rows = EmbeddingTable(stored["codes"], stored["scales"], HIDDEN, GROUP)
    host, at = Host(shape, rows.row), 0
    for call in calls:
        inputs, chunk = host.inputs(call["tokens"], call["chunk"]), call["chunk"]
        yield from (inputs[name] for name in ("hidden", "cosine", "sine"))
        yield from (inputs[name] for name in sorted(name for name in inputs if name.startswith("mask")))
        outputs = {"logits": np.zeros((1, 1, chunk, VOCAB), np.uint16)}
        for index, layer in enumerate(shape.layers):
            for part, sizes in (("keys", (layer.head_dim, chunk)), ("values", (chunk, layer.head_dim))):
                count = layer.kv_heads * layer.head_dim * chunk
                new = np.frombuffer(codes, np.uint8, count, at).reshape(1, layer.kv_heads, *sizes)
                outputs[f"layers.{index}.new_{part}"], at = new, at + count
        host.commit(outputs, len(call["tokens"]))
        for ring in host.rings:
            yield ring.keys
            yield ring.values


@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("bits", [8, 4])
def test_every_code_is_that_of_the_python_host(program: Path, tmp_path: Path, bits: int, sinks: int) -> None:
    shape, stored, drawn = layout(bits, sinks), table(bits), np.random.default_rng(bits + sinks)
    calls = [
        {"tokens": drawn.integers(0, VOCAB, count).tolist(), "chunk": 1 if count == 1 else CHUNK} for count in CALLS
    ]
    codes = drawn.integers(0, 1 << bits, 3 * 2 * 8 * CHUNK * len(CALLS), np.uint8).tobytes()
    (tmp_path / "layout.json").write_text(json.dumps(shape.to_json()), encoding="utf-8")
    (tmp_path / "calls.json").write_text(json.dumps(calls), encoding="utf-8")
    (tmp_path / "codes.bin").write_bytes(codes)
    save_file(stored, tmp_path / "table.safetensors")
    subprocess.run([program, tmp_path, tmp_path / "out"], check=True)
    found, at = (tmp_path / "out").read_bytes(), 0
    for number, wanted in enumerate(expected(shape, stored, calls, codes)):
        given = np.frombuffer(found, wanted.dtype, wanted.size, at).reshape(wanted.shape)
        at += wanted.nbytes
        off = np.abs(given.astype(int) - wanted.astype(int)).max()
        assert off <= (1 if wanted.ndim == 4 and wanted.shape[2] == 1 and wanted.dtype == np.uint16 else 0), number
    assert at == len(found)
