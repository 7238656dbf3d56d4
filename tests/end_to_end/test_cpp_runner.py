"""The runners in C++, built by CMake: the oracle's token ids with every kind of cache, here, behind the adb client, and on arm64."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from device_tests.devices import adb
from device_tests.devices.base import find_device
from device_tests.loopback_adb import LoopbackAdb
from device_tests.process import LineStream, run_program
from device_tests.protocol import Memory, Repetition, RunnerRequest, parse_line
from exporter.quantize.quantized_checkpoint import load_quantized
from exporter.verify.greedy import greedy_reference
from tests.conftest import REPOSITORY
from tests.end_to_end.command import FAST, SlmExport, overrides, read_json

INCLUDE_VARIABLE = "ONNXRUNTIME_INCLUDE"
ARM64_VARIABLE = "SLM_ARM64_RUNNER"
"""Folder of runners for arm64 with their libraries, as docs/guides/measure-latency.md builds it."""
INT4_WITH_SINKS = ("kv_cache.bits=4", "kv_cache.zero_point=true", "cache.window=48", "cache.sinks=4", "cache.chunk=16")
CASES = {
    "int8": (),
    "int4-window-sinks": (*INT4_WITH_SINKS, "gates_int4_kv.perplexity_quantized_percent_max=null"),
    "gqa": ("onnx.attention=gqa", "onnx.attention_terms=1", "kv_cache.bits=32"),
}
BENCH = ("--prompt-tokens", "24", "--prompt-tokens", "270", "--generate", "12", "--repetitions", "1")
"""The longer prompt makes the full-attention cache grow past its first slots."""


def built(settings: list[str], factory: pytest.TempPathFactory) -> Path:
    """The runners that CMake makes of these settings."""
    if shutil.which("cmake") is None:
        pytest.skip("there is no cmake")
    build, output = factory.mktemp("build"), factory.mktemp("runner")
    for command in (
        ["cmake", "-S", str(REPOSITORY / "device_tests/runners"), "-B", str(build), *settings],
        ["cmake", "--build", str(build)],
        ["cmake", "--install", str(build), "--prefix", str(output)],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    return output


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
    include = Path(os.environ.get(INCLUDE_VARIABLE, "/usr/include/onnxruntime"))
    if not (include / "onnxruntime_c_api.h").is_file():
        pytest.skip(f"no onnxruntime_c_api.h; set {INCLUDE_VARIABLE} to its folder")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    return built([f"-DONNXRUNTIME_INCLUDE={include}", f"-DONNXRUNTIME_LIBRARY={library}"], tmp_path_factory)


def executorch_folder() -> Path:
    """Of the installed package."""
    pytest.importorskip("executorch", reason="the executorch extra is not installed")
    found = importlib.util.find_spec("executorch.runtime")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent.parent


@pytest.fixture(scope="session")
def pte_runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built([f"-DEXECUTORCH={executorch_folder()}"], tmp_path_factory)


@pytest.fixture(scope="session")
def program(exported_once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as a .pte whose operators are this project's own."""
    exported = exported_once("--recipe", "android-cpu-small", *FAST)
    return Path(shutil.copytree(exported, tmp_path_factory.mktemp("pte") / "out"))


def export(slm_export: SlmExport, output: Path, settings: tuple[str, ...]) -> Path:
    slm_export.succeed("--recipe", "onnx-cpu-small", *FAST, *overrides(*settings), "--output", str(output))
    return output


@pytest.mark.parametrize("case", CASES)
def test_the_runner_says_what_the_oracle_says(slm_export: SlmExport, runner: Path, tmp_path: Path, case: str) -> None:
    folder = export(slm_export, tmp_path / "out", CASES[case])
    slm_export.succeed("bench", str(folder), *BENCH, "--runner", str(runner))
    report = read_json(folder, "report")
    assert report["latency"]["token_check"]["equal"]
    assert report["latency"]["engine"].startswith("onnxruntime 1.")
    assert report["latency"]["kv_bytes"] == report["kv_cache"]["bytes_total"]


def test_a_program_of_executorch_says_what_the_oracle_says(
    slm_export: SlmExport, pte_runner: Path, program: Path
) -> None:
    slm_export.succeed("bench", str(program), *BENCH, "--runner", str(pte_runner))
    report = read_json(program, "report")
    assert report["latency"]["token_check"]["equal"]
    assert report["latency"]["engine"].startswith("executorch 1.")
    assert report["latency"]["kv_bytes"] == report["kv_cache"]["bytes_total"]
    assert len(report["latency"]["by_prompt"][0]["repetitions"][0]["decode_ms"]) == 11


def test_a_timed_repetition_asks_nothing_of_the_system_but_its_threads_wake_each_other(
    pte_runner: Path, program: Path, tmp_path: Path
) -> None:
    """From the line of the warm-up to that of the last repetition."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    request = RunnerRequest(str(program), (tuple(range(5, 45)),), 16, 1, 2, ())
    (tmp_path / "request.json").write_text(request.to_json(), encoding="utf-8")
    calls = tmp_path / "calls"
    command = [
        "strace",
        "-f",
        "-e",
        "trace=!futex,sched_yield",
        "-o",
        str(calls),
        str(pte_runner / "executorch_runner"),
    ]
    with closing(LineStream([*command, str(tmp_path / "request.json")], 120)) as stream:
        lines = [line for line in stream.lines() if parse_line(line)]
    if not lines:
        pytest.skip("strace may not trace here")
    names = [line.split(maxsplit=1)[1] for line in calls.read_text(encoding="utf-8", errors="replace").splitlines()]
    repetitions = [at for at, name in enumerate(names) if name.startswith('write(1, "{\\"event\\":\\"repetition')]
    assert len(repetitions) == 3
    between = names[repetitions[0] + 1 : repetitions[2]]
    assert [name for name in between if not name.startswith(("write(1,", "<...", "madvise("))] == []


@pytest.mark.slow
def test_a_program_for_the_npu_says_in_the_simulator_what_the_export_was_verified_with(
    slm_export: SlmExport, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its sibling without a simulator is `test_bench_npu_host`. The simulator loads the verification twin only, and its times are no
    latency, so that `bench` refuses it: the runner is asked directly."""
    pytest.importorskip("executorch", reason="the qnn extra is not installed")
    qualcomm = pytest.importorskip("onnxruntime_qnn", reason="the qnn extra is not installed")
    package = executorch_folder()
    backend = package / "lib/libexecutorch_backend_qnn.so"
    runner = built([f"-DEXECUTORCH={package}", f"-DQNN_LIBRARIES={backend}"], tmp_path_factory)
    output, twin = tmp_path / "out", tmp_path / "twin"
    slm_export.succeed("--recipe", "android-npu", *FAST, "--output", str(output))
    twin.mkdir()
    for name in ("host.json", "embedding.safetensors", "verification/model.pte"):
        shutil.copy(output / name, twin)
    reference = greedy_reference(load_quantized(output / "verification"), range(5, 45), 4)
    request = RunnerRequest(str(twin), (reference.prompt,), 4, 0, 1, ())
    (tmp_path / "request.json").write_text(request.to_json(), encoding="utf-8")
    stream = LineStream(
        [str(runner / "executorch_runner"), str(tmp_path / "request.json")],
        300,
        {"LD_LIBRARY_PATH": str(Path(str(qualcomm.__file__)).parent)},
    )
    with closing(stream):
        events = [event for line in stream.lines() if (event := parse_line(line)) is not None]
    (repetition,) = (event for event in events if isinstance(event, Repetition))
    assert repetition.token_ids == reference.token_ids
    (memory,) = (event for event in events if isinstance(event, Memory))
    assert memory.kv_bytes == read_json(output, "report")["kv_cache"]["bytes_total"]


@pytest.fixture
def adb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One of its own, where there is a client."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free.getsockname()[1]))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    run_program([adb.client() or "adb", "kill-server"], 20)


@pytest.fixture
def phone(tmp_path: Path, adb_server: None) -> Iterator[LoopbackAdb]:
    if adb.client() is None:
        pytest.skip(f"there is no adb; {adb.CLIENT_STEP}")
    with LoopbackAdb(tmp_path / "phone") as device:
        run_program([str(adb.client()), "connect", device.serial], 20)
        yield device


@pytest.mark.parametrize("engine", ["onnxruntime", "executorch"])
def test_behind_adb_the_tokens_are_the_oracles_and_no_time_is_shown(
    slm_export: SlmExport, phone: LoopbackAdb, tmp_path: Path, request: pytest.FixtureRequest, engine: str
) -> None:
    of_executorch = engine == "executorch"
    runner = request.getfixturevalue("pte_runner" if of_executorch else "runner")
    folder = request.getfixturevalue("program") if of_executorch else export(slm_export, tmp_path / "out", ())
    shown = slm_export.succeed("bench", str(folder), *BENCH, "--device", "adb", "--runner", str(runner)).stdout
    latency = read_json(folder, "report")["latency"]
    assert (latency["device"], latency["obtained"]) == (f"adb:{phone.serial}", "emulated")
    assert latency["token_check"]["equal"]
    assert latency["ttft_ms"] is None
    assert "tokens/s" not in shown
    assert f"{engine}_runner" in {Path(name).name for name in phone.received}


@pytest.mark.slow
def test_one_command_exports_and_measures_on_two_devices(
    slm_export: SlmExport, pte_runner: Path, phone: LoopbackAdb, tmp_path: Path
) -> None:
    """Each with the runner that is meant for it: Python here, C++ behind adb. `test_bench_several` has the parts of it."""
    devices = ("--device", f"adb:{phone.serial}", "--device", "local", "--runner", f"adb={pte_runner}")
    shown = slm_export.succeed("--recipe", "android-cpu-small", *FAST, *devices, "--output", str(tmp_path / "out"))
    first, second = read_json(tmp_path / "out", "report")["latency_devices"]
    assert (first["obtained"], second["obtained"]) == ("emulated", "measured")
    assert first["token_check"]["equal"] and second["token_check"]["equal"]
    assert first["engine"] == second["engine"].removesuffix(" through Python")
    assert f"adb:{phone.serial}" in shown.stdout


def test_a_phone_that_is_unplugged_ends_with_6_and_a_report_that_says_partial(
    slm_export: SlmExport, pte_runner: Path, phone: LoopbackAdb, program: Path
) -> None:
    """While the runner works: it runs for minutes."""
    started = threading.Event()
    phone.on_service = lambda service: started.set() if "executorch_runner" in service else None

    def pull() -> None:
        started.wait(120)
        time.sleep(1.0)
        phone.unplug()

    threading.Thread(target=pull, daemon=True).start()
    options = ("--device", "adb", "--runner", str(pte_runner), "--time-limit", "60", "--prompt-tokens", "24")
    lost = slm_export.run("bench", str(program), *options, "--generate", "400", "--repetitions", "500")
    assert lost.returncode == 6
    assert "no longer answers" in lost.stderr
    latency = read_json(program, "report")["latency"]
    assert (latency["status"], latency["decode_ms"]) == ("partial", None)
    assert "No latency: partial" in (program / "report.html").read_text(encoding="utf-8")
    assert run_program(["pgrep", "-f", str(phone.root)], 10).output == ""


@pytest.mark.parametrize("device", ["emulated-arm64", "arm64-vm"])
@pytest.mark.parametrize("engine", ["onnxruntime", "executorch"])
def test_on_arm64_the_tokens_are_the_oracles(
    slm_export: SlmExport,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    adb_server: None,
    engine: str,
    device: str,
) -> None:
    runner, lacks = os.environ.get(ARM64_VARIABLE), find_device(device)[1].lacks()
    if runner is None or lacks:
        pytest.skip(lacks or f"no runner for arm64; set {ARM64_VARIABLE} to its folder")
    folder = request.getfixturevalue("program") if engine == "executorch" else export(slm_export, tmp_path / "out", ())
    few = ("--prompt-tokens", "24", "--generate", "8", "--repetitions", "1", "--warm-up", "0")
    slm_export.succeed("bench", str(folder), *few, "--device", device, "--runner", runner)
    latency = read_json(folder, "report")["latency"]
    assert latency["token_check"]["equal"]
    assert (latency["obtained"], latency["ttft_ms"]) == ("emulated", None)
