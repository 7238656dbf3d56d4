"""Kinds of devices that need programs which are not here: stand-ins on the path take their place."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import Run

from device_tests import ai_hub
from device_tests.devices.base import Device, RunnerFiles, find_device
from device_tests.devices.iphone import APP_VARIABLE, IphoneDevice, parse_devices
from device_tests.harness import Job, measure
from device_tests.protocol import RunnerRequest
from exporter.bench import runner_files
from exporter.errors import ExitCode, ToolchainMissing, UsageError
from exporter.targets.base import Obtained

PHONE = "0000-1111"
LISTING = {
    "result": {
        "devices": [
            {
                "identifier": PHONE,
                "hardwareProperties": {"marketingName": "iPhone 15"},
                "connectionProperties": {"tunnelState": "connected"},
            }
        ]
    }
}
RUNNER = f"""#!{sys.executable}
import json, sys
def say(event, **values): print(json.dumps({{"event": event, **values}}), flush=True)
request = json.load(open(sys.argv[1]))
assert open(request["artifact"] + "/model.txt").read() == "weights"
say("loaded", engine="pretend 1", load_ns=1000, threads=1, affinity="0", protocol=1)
for index in range(2):
    say("repetition", prompt=0, index=index, warm_up=index == 0, ttft_ns=5000, token_ids=[1, 2], decode_ns=[10])
say("memory", peak_rss_bytes=1, kv_bytes=2)
say("ended")
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def job(tmp_path: Path) -> Job:
    artifact, runner = tmp_path / "artifact", tmp_path / "pretend_runner"
    artifact.mkdir()
    (artifact / "model.txt").write_text("weights", encoding="utf-8")
    runner.write_text(RUNNER, encoding="utf-8")
    runner.chmod(0o755)
    request = RunnerRequest("", ((1,),), 2, 1, 1, ())
    return Job(artifact, ("model.txt",), RunnerFiles(("$RUNNER/pretend_runner",), (runner,)), request, 20.0)


def device(text: str) -> Device:
    return find_device(text)[1]


def test_a_host_behind_ssh_is_measured_in_a_folder_of_its_own(programs: Path, tmp_path: Path) -> None:
    """The stand-in drops options and host, and runs the script in the remote home."""
    home = tmp_path / "remote"
    home.mkdir()
    script = (
        'while [ "$1" != -- ]; do shift; done; echo "$2" >> ../hosts; shift 2; cd ' + str(home) + '; exec sh -c "$1"'
    )
    put(programs, "ssh", f"cd {home}; {script}")
    found = measure(device("ssh:board"), job(tmp_path))
    assert found.failure is None
    assert len(found.timed(0)) == 1
    assert set((tmp_path / "hosts").read_text().split()) == {"board"}
    folder = home / ".cache/slm-export-bench"
    assert (folder / "artifact/model.txt").read_text() == "weights"
    assert not (folder / "request.json").exists()


def test_a_host_that_does_not_answer_is_missing(programs: Path, tmp_path: Path) -> None:
    put(programs, "ssh", "echo 'ssh: connect to host board port 22: No route to host' >&2; exit 255")
    assert "No route to host" in str(device("ssh:board").lacks())
    failure = measure(device("ssh:board"), job(tmp_path)).failure
    assert failure is not None
    assert failure.exit_code == ExitCode.TOOLCHAIN_MISSING


@pytest.mark.parametrize("text", ["ssh", "ssh:-oProxyCommand=evil", "local:x", "emulated-arm64:x"])
def test_what_names_no_device_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        find_device(text)


def test_an_unknown_kind_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'emulated-arm64'"):
        find_device("emulated-arm")


def test_the_emulator_gets_the_processor_files_and_its_times_are_not_measured(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLM_EXPORT_QEMU", raising=False)
    check = 'grep -q 0xd0b $4/proc/cpuinfo && [ -f $4/sys/devices/system/cpu/possible ] || exit 3; shift 4; exec "$@"'
    put(programs, "qemu-aarch64-static", check)
    found = measure(device("emulated-arm64"), job(tmp_path))
    assert found.failure is None
    assert found.device.obtained is Obtained.EMULATED


def test_a_runner_that_brings_its_own_library_is_started_by_its_loader(tmp_path: Path) -> None:
    for name in ("onnxruntime_runner", "libc.so.6", "ld-linux-aarch64.so.1"):
        (tmp_path / name).touch()
    found = runner_files(tmp_path, "onnxruntime_runner")
    words = ("$RUNNER/ld-linux-aarch64.so.1", "--library-path", "$RUNNER", "$RUNNER/onnxruntime_runner")
    assert found.words == words
    assert len(found.files) == 3
    with pytest.raises(UsageError, match="is not there"):
        runner_files(tmp_path, "executorch_runner")


def test_a_phone_behind_a_mac_is_listed_and_copied_to(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(APP_VARIABLE, "org.example.runner")
    put(programs, "xcrun", f'[ "$2 $3" = "list devices" ] && echo \'{json.dumps(LISTING)}\' > $5; true')
    (phone,) = parse_devices(json.dumps(LISTING))
    assert (phone.identifier, phone.model, phone.connected) == (PHONE, "iPhone 15", True)
    assert device("iphone").name == f"iphone:{PHONE}"
    assert device(f"iphone:{PHONE}").lacks() is None
    assert "known: 0000-1111" in str(device("iphone:other").lacks())


def test_commands_for_a_phone_name_device_app_and_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(APP_VARIABLE, "org.example.runner")
    phone = IphoneDevice(PHONE)
    launch = "xcrun devicectl device process launch --console --terminate-existing --device 0000-1111 org.example.runner request.json"
    assert phone.command(["runner", "request.json"]).words == tuple(launch.split())
    copy = "xcrun devicectl device copy to --device 0000-1111 --domain-type appDataContainer --domain-identifier org.example.runner"
    copied = phone.copy_words(Path("model.onnx"), "artifact/model.onnx")
    assert copied == [*copy.split(), "--source", "model.onnx", "--destination", "Documents/artifact/model.onnx"]


@pytest.mark.parametrize("text", ["", "{}", '{"result": {"devices": [{"identifier": "1"}]}}'])
def test_a_list_of_phones_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(ToolchainMissing):
        parse_devices(text)


class PretendService:
    """As `qai_hub` is used: jobs that wait, a model, a profile."""

    def __init__(self, success: bool = True) -> None:
        self.success, self.submitted = success, list[tuple[str, Any]]()

    def Device(self, name: str) -> str:
        return name

    def submit_compile_job(self, model: str, device: Any, input_specs: Any, options: str) -> Any:
        self.submitted.append(("compile", options))
        return self._job(get_target_model=lambda: "compiled")

    def submit_profile_job(self, model: Any, device: Any) -> Any:
        self.submitted.append(("profile", model))
        summary = {
            "estimated_inference_time": 1500,
            "all_inference_times": [1500, 1700],
            "estimated_inference_peak_memory": 10,
        }
        return self._job(download_profile=lambda: {"execution_summary": summary})

    def _job(self, **methods: Any) -> Any:
        return SimpleNamespace(wait=lambda: SimpleNamespace(success=self.success, message="no such device"), **methods)


def test_a_hosted_phone_estimates_graphs_and_says_so(tmp_path: Path) -> None:
    service = PretendService()
    options = "--target_runtime qnn_context_binary"
    found = ai_hub.profile_graph(service, "decode", tmp_path / "m.onnx", "Phone", {"input_ids": (1, 1)}, options)
    assert (found.ms, found.runs_ms, found.obtained) == (1.5, (1.5, 1.7), Obtained.ESTIMATED)
    assert "no host loop" in found.label
    assert service.submitted == [("compile", options), ("profile", "compiled")]


def test_a_hosted_job_that_fails_is_a_device_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ToolchainMissing, match="no such device"):
        ai_hub.profile_graph(PretendService(False), "decode", tmp_path / "m.onnx", "Phone", {}, "")
    with pytest.raises(ToolchainMissing, match="lacks"):
        ai_hub.parse_profile("decode", "Phone", {"execution_summary": {}})


def test_a_missing_token_is_named_with_the_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace() if name == "qai_hub" else None)
    monkeypatch.setenv(ai_hub.CONFIGURATION_VARIABLE, str(tmp_path / "client.ini"))
    assert "qai-hub configure --api_token" in str(ai_hub.lacks())
    with pytest.raises(ToolchainMissing):
        ai_hub.installed_client()
    (tmp_path / "client.ini").touch()
    assert ai_hub.lacks() is None


def test_the_command_lists_every_kind_and_what_it_lacks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_tests.devices.adb.client", lambda: None)
    found = {entry["kind"]: entry for entry in json.loads(run("devices", "--json").out)}
    assert set(found) == {"adb", "arm64-vm", "emulated-arm64", "iphone", "local", "qai-hub"}
    assert found["local"]["ready"]
    assert "there is no adb" in found["adb"]["lacks"]
    assert "ssh:HOST" in run("devices").out
