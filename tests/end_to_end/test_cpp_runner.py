"""The runner in C++, built by its CMake file: the oracle's token ids with every kind of cache, here and behind the adb client."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_tests.devices import adb
from device_tests.loopback_adb import LoopbackAdb
from device_tests.process import run_program
from tests.conftest import REPOSITORY
from tests.end_to_end.command import FAST, SlmExport, read_json

onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")

INCLUDE_VARIABLE = "ONNXRUNTIME_INCLUDE"
INT4_WITH_SINKS = ("kv_cache.bits=4", "kv_cache.zero_point=true", "cache.window=48", "cache.sinks=4", "cache.chunk=16")
CASES = {
    "int8": (),
    "int4-window-sinks": (*INT4_WITH_SINKS, "gates_int4_kv.perplexity_quantized_percent_max=null"),
    "gqa": ("onnx.attention=gqa", "onnx.attention_terms=1", "kv_cache.bits=32"),
}
BENCH = ("--prompt-tokens", "24", "--prompt-tokens", "270", "--generate", "12", "--repetitions", "1")
"""The longer prompt makes the full-attention cache grow past its first slots."""


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    include = Path(os.environ.get(INCLUDE_VARIABLE, "/usr/include/onnxruntime"))
    if not (include / "onnxruntime_c_api.h").is_file():
        pytest.skip(f"no onnxruntime_c_api.h; set {INCLUDE_VARIABLE} to its folder")
    if shutil.which("cmake") is None:
        pytest.skip("there is no cmake")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    build, output = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("runner")
    settings = [f"-DONNXRUNTIME_INCLUDE={include}", f"-DONNXRUNTIME_LIBRARY={library}"]
    for command in (
        ["cmake", "-S", str(REPOSITORY / "device_tests/runners"), "-B", str(build), *settings],
        ["cmake", "--build", str(build)],
        ["cmake", "--install", str(build), "--prefix", str(output)],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    return output


def export(slm_export: SlmExport, output: Path, settings: tuple[str, ...]) -> Path:
    overrides = [part for setting in settings for part in ("--set", setting)]
    slm_export.succeed("--recipe", "onnx-cpu-small", *FAST, *overrides, "--output", str(output))
    return output


@pytest.mark.parametrize("case", CASES)
def test_the_runner_says_what_the_oracle_says(slm_export: SlmExport, runner: Path, tmp_path: Path, case: str) -> None:
    folder = export(slm_export, tmp_path / "out", CASES[case])
    slm_export.succeed("bench", str(folder), *BENCH, "--runner", str(runner))
    report = read_json(folder, "report")
    assert report["latency"]["token_check"]["equal"]
    assert report["latency"]["engine"].startswith("onnxruntime 1.")
    assert report["latency"]["kv_bytes"] == report["kv_cache"]["bytes_total"]


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackAdb]:
    if adb.client() is None:
        pytest.skip(f"there is no adb; {adb.CLIENT_STEP}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free.getsockname()[1]))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with LoopbackAdb(tmp_path / "phone") as device:
        run_program([str(adb.client()), "connect", device.serial], 20)
        yield device
        run_program([str(adb.client()), "kill-server"], 20)


def test_behind_adb_the_tokens_are_the_oracles_and_no_time_is_shown(
    slm_export: SlmExport, runner: Path, phone: LoopbackAdb, tmp_path: Path
) -> None:
    folder = export(slm_export, tmp_path / "out", ())
    shown = slm_export.succeed("bench", str(folder), *BENCH, "--device", "adb", "--runner", str(runner)).stdout
    latency = read_json(folder, "report")["latency"]
    assert (latency["device"], latency["obtained"]) == (f"adb:{phone.serial}", "emulated")
    assert latency["token_check"]["equal"]
    assert latency["ttft_ms"] is None
    assert "tokens/s" not in shown
    assert "onnxruntime_runner" in {Path(name).name for name in phone.received}
