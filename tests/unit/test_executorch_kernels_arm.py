"""The Arm path of the attention kernels, cross-compiled and run by an emulator of arm64: against the oracle, and against this machine's
plain C++ on the same numbers. `SLM_AARCH64_CXX` and `SLM_AARCH64_RUN` name a compiler and an emulator outside the search path."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_executorch_kernels import ATTENTION, CHUNKS, CODECS, RINGS, calibrated, oracle

from exporter.decoder.cache import LayerCache
from exporter.decoder.spec import AttentionSpec
from exporter.quantize.formats import KvFormat
from exporter.targets.executorch.kernels import build
from tests.unit.helpers import normal

VARIANTS = {"neon-dotprod": build.ARM_FLAGS["path_neon.cpp"], "neon": ()}
WIDE = replace(ATTENTION, query_heads=6, head_dim=64, score_cap=3.0)


def command(variable: str, *names: str) -> list[str]:
    if variable in os.environ:
        return shlex.split(os.environ[variable])
    return next(([found] for name in names if (found := shutil.which(name))), [])


@pytest.fixture(scope="module", params=VARIANTS, ids=VARIANTS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """Name of the path, and the command that runs it."""
    compiler = command("SLM_AARCH64_CXX", "aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-12")
    emulator = command("SLM_AARCH64_RUN", "qemu-aarch64-static", "qemu-aarch64")
    if not compiler or not emulator:
        pytest.skip("no aarch64 cross-compiler, or no qemu-aarch64, on this machine")
    folder, objects = tmp_path_factory.mktemp("arm"), []
    main = Path(__file__).with_name("kernel_process.cpp")
    for source in (*(build.SOURCES / name for name in build.CORE), main):
        special = VARIANTS[request.param] if source.name == "path_neon.cpp" else ()
        objects.append(str(folder / f"{source.stem}.o"))
        subprocess.run([*compiler, *build.COMMON, *special, "-c", str(source), "-o", objects[-1]], check=True)
    subprocess.run([*compiler, "-static", *objects, "-o", str(folder / "program")], check=True)
    return request.param, [*emulator, str(folder / "program")]


def numbers(attention: AttentionSpec) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    shapes = (attention.query_heads, attention.kv_heads, attention.kv_heads)
    return [
        (
            normal(9 * at, n, shapes[0], attention.head_dim),
            *(normal(9 * at + i, n, shapes[i], attention.head_dim) for i in (1, 2)),
        )
        for at, n in enumerate(CHUNKS)
    ]


def emulated(
    program: tuple[str, list[str]],
    path: str,
    attention: AttentionSpec,
    ring: LayerCache,
    kv_format: KvFormat,
    folder: Path,
) -> np.ndarray:
    """The bytes that the program writes: what was attended, as float32, comes first."""
    constants, fine = calibrated(attention), kv_format.bits == 8
    sizes = [ring.slots, attention.kv_heads, attention.query_heads, attention.head_dim, ring.window or 0, ring.sinks]
    sizes += [kv_format.bits, kv_format.zero_point, kv_format.rotation, fine, len(CHUNKS)]
    scores = np.array([attention.score_scale, attention.score_cap or 0.0], np.float32)
    sides = constants.key.center, constants.key.balance, constants.value.center, constants.value.balance
    parts = [np.array(sizes, np.int64).tobytes(), scores.tobytes(), *(side.numpy().tobytes() for side in sides)]
    for chunk in numbers(attention):
        parts += [np.int64(chunk[0].shape[0]).tobytes(), *(tensor.numpy().tobytes() for tensor in chunk)]
    (folder / "in").write_bytes(b"".join(parts))
    subprocess.run([*program[1], path, str(folder / "in"), str(folder / "out")], check=True, timeout=300)
    return np.fromfile(folder / "out", np.uint8)


@pytest.mark.parametrize("attention", [ATTENTION, WIDE], ids=["grouped", "wide-capped"])
@pytest.mark.parametrize("kv_format", [CODECS["int8"], CODECS["int4-zero"]], ids=["int8", "int4-zero"])
def test_the_arm_path_attends_as_the_oracle_does(
    program: tuple[str, list[str]], kv_format: KvFormat, attention: AttentionSpec, tmp_path: Path
) -> None:
    ring, count = RINGS["sinks"], sum(CHUNKS) * attention.query_heads * attention.head_dim
    reference = oracle(attention, ring, kv_format, calibrated(attention))
    wanted = torch.cat([reference.attention(0, attention, *chunk) for chunk in numbers(attention)]).numpy()
    written = emulated(program, program[0], attention, ring, kv_format, tmp_path)
    found = written[: 4 * count].view(np.float32).reshape(wanted.shape)
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()
    plain = emulated(program, "portable", attention, ring, kv_format, tmp_path)
    np.testing.assert_array_equal(written, plain)
