"""`bench --parser`: the tool of others through the ordinary path of a device, and what becomes of what it prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_cases import PretendDevice
from command_line import MODEL, Run
from test_bench_official import GENAI, OBSERVED

from device_tests.devices import adb
from device_tests.devices.adb import AdbDevice
from device_tests.devices.base import Device, RunnerFiles
from device_tests.loopback_adb import LoopbackAdb
from device_tests.official import PARSERS
from device_tests.official_run import OfficialJob, OfficialMeasurement, Prompt, measure_official
from device_tests.process import run_program
from exporter.errors import ExitCode
from exporter.report.compare import Report
from exporter.report.latency import Latency, NotDeviceLatency, shown_latency
from exporter.report.official import NOT_CHECKED, official_lines, official_section
from exporter.targets.base import Obtained

SAID = f"I 00:00:01 runner\nOnce upon a timePyTorchObserver {json.dumps(OBSERVED)}\n"
TEXT = "Once upon a time,\nit's $5 there"


def tool(folder: Path, says: str = SAID, more: str = "") -> Path:
    """A program that notes its words and prints what a tool printed."""
    path = folder / "tool"
    script = f"#!{sys.executable}\nimport json, sys, time\nopen({str(folder / 'calls')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
    path.write_text(f"{script}{more}\nprint({says!r}, end='')\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def job(folder: Path, program: Path, name: str = "executorch", **given: Any) -> OfficialJob:
    known = PARSERS.get(name)
    (folder / "model.pte").write_text("a program", encoding="utf-8")
    prompts = (Prompt(8, TEXT), Prompt(16, TEXT))
    runner = RunnerFiles((f"$RUNNER/{program.name}",), (program,))
    made = OfficialJob(
        folder, ("model.pte",), runner, known, known.arguments or (), prompts, 4, 1, 2, 20.0, folder / "tool.log"
    )
    return replace(made, **given)


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls").read_text(encoding="utf-8").splitlines()]


def test_a_tool_is_started_once_for_each_run_with_the_prompt_as_one_word(tmp_path: Path) -> None:
    found = measure_official(PretendDevice(), job(tmp_path, tool(tmp_path)))
    assert found.failure is None
    assert [len(runs) for runs in found.figures] == [2, 2]
    started = calls(tmp_path)
    assert len(started) == 2 * 3
    first = dict(zip(started[0][::2], started[0][1::2], strict=True))
    assert first["--prompt"] == TEXT
    assert first["--model_path"] == str(tmp_path / "model.pte")
    assert [first["--seq_len"], started[-1][started[-1].index("--seq_len") + 1]] == ["12", "20"]


def test_a_tool_that_is_told_the_repetitions_is_started_once(tmp_path: Path) -> None:
    found = measure_official(PretendDevice(), job(tmp_path, tool(tmp_path, GENAI), "onnxruntime-genai"))
    assert found.failure is None
    assert [len(runs) for runs in found.figures] == [1, 1]
    assert [call[-4:] for call in calls(tmp_path)] == [["-w", "1", "-r", "2"]] * 2


def test_what_the_tool_says_is_its_own_and_no_latency(tmp_path: Path) -> None:
    section = json.loads(json.dumps(official_section(measure_official(PretendDevice(), job(tmp_path, tool(tmp_path))))))
    assert section["token_check"] == NOT_CHECKED
    assert section["tool"] == "executorch"
    prompt = section["by_prompt"][0]
    assert (prompt["ttft_ms"], prompt["decode_tokens_per_s"], prompt["decode_ms"]) == (90.0, 100.0, None)
    text = "\n".join(official_lines(section))
    assert "executorch's own figures, tokens not checked against the oracle" in text
    assert "times of single tokens not known" in text
    assert shown_latency(section) is None
    with pytest.raises(NotDeviceLatency):
        Latency(section)


def test_no_budget_can_name_a_figure_of_a_tool(tmp_path: Path) -> None:
    section = official_section(measure_official(PretendDevice(), job(tmp_path, tool(tmp_path))))
    path = tmp_path / "report.json"
    for values in ({"official_latency": [section]}, {"latency": section}):
        path.write_text(json.dumps({"artifact": {"bytes": 1}, **values}), encoding="utf-8")
        report = Report.read(path)
        for name in ("latency.decode_ms.p50", "latency.ttft_ms", "official_latency.by_prompt.ttft_ms"):
            assert report.number(name) is None


def test_times_of_another_machine_are_null_and_its_counts_are_kept(tmp_path: Path) -> None:
    found = measure_official(PretendDevice(Obtained.EMULATED), job(tmp_path, tool(tmp_path)))
    (run, _) = official_section(found)["by_prompt"][0]["runs"]
    assert {name: value for name, value in run.items() if value is not None} == {
        "prompt_tokens": 64,
        "generated_tokens": 63,
    }
    assert "emulated" in official_lines(official_section(found))[-1]


BAD = {
    "prints something else": (
        dict(says="Segmentation of text\n"),
        "printed what its parser does not know",
        ExitCode.INTERNAL,
    ),
    "prints no figure": (dict(says="PyTorchObserver {}\n"), "no time and no rate", ExitCode.INTERNAL),
    "prints no number": (
        dict(says='PyTorchObserver {"decode_token_per_sec": NaN}\n'),
        "decode_tokens_per_s is nan",
        ExitCode.INTERNAL,
    ),
    "fails": (
        dict(more="sys.exit('model.pte: no method get_vocab_size')"),
        "no method get_vocab_size",
        ExitCode.INTERNAL,
    ),
    "hangs": (
        dict(more="print('loading', flush=True); time.sleep(60)"),
        "did not end within 1 s",
        ExitCode.TOOLCHAIN_MISSING,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_tool_that_is_not_understood_ends_in_one_line_that_names_its_log(tmp_path: Path, case: str) -> None:
    given, said, code = BAD[case]
    limit = 1.0 if case == "hangs" else 20.0
    found = measure_official(PretendDevice(), job(tmp_path, tool(tmp_path, **given), time_limit_s=limit))
    assert found.failure is not None
    assert found.failure.exit_code == code
    message = str(found.failure)
    assert said in message
    assert str(tmp_path / "tool.log") in message
    assert "\n" not in message
    log = (tmp_path / "tool.log").read_text(encoding="utf-8")
    assert {"hangs": "loading", "fails": "get_vocab_size"}.get(case, given.get("says", "")) in log
    section = official_section(found)
    assert (section["status"], section["by_prompt"][0]["ttft_ms"]) == ("partial", None)
    assert official_lines(section)[-1] == f"  partial: {message}"


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Callable[[], LoopbackAdb]]:
    if adb.client() is None:
        pytest.skip("there is no adb")
    with LoopbackAdb(tmp_path / "phone") as device:
        run_program([str(adb.client()), "connect", device.serial], 20)
        yield lambda: device
        run_program([str(adb.client()), "disconnect", device.serial], 20)


def test_behind_adb_it_is_the_same_and_only_what_is_needed_is_pushed(
    phone: Callable[[], LoopbackAdb], tmp_path: Path
) -> None:
    device: Device = AdbDevice(phone().serial)
    found: OfficialMeasurement = measure_official(device, job(tmp_path, tool(tmp_path)))
    assert found.failure is None
    assert calls(tmp_path)[0][calls(tmp_path)[0].index("--prompt") + 1] == TEXT
    assert found.figures[0][0].decode_tokens_per_s == 100.0
    assert sorted(os.path.basename(name) for name in phone().received) == ["model.pte", "tool"]
    section = official_section(found)
    assert (section["obtained"], section["by_prompt"][0]["decode_tokens_per_s"]) == (Obtained.EMULATED, None)


@pytest.fixture
def pretended_export(tmp_path: Path) -> Path:
    """The files of an export that a tool's measurement reads."""
    import shutil

    from test_docs_keys import example_report

    from exporter.manifest import write_manifest
    from exporter.recipe import load_recipe
    from exporter.report.build import write_report

    folder = tmp_path / "out"
    (folder / "verification").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(Path(MODEL) / name, folder / name)
    windows = {"text": "text.txt", "windows": [list(range(300, 364))], "artifact_windows": 1, "decode_tokens": 1}
    perplexity = {"perplexity_full_precision": 1.0, "perplexity_full_precision_all": 1.0}
    (folder / "verification" / "evaluation.json").write_text(json.dumps(windows | perplexity), encoding="utf-8")
    report = {name: value for name, value in example_report().items() if not name.endswith(("latency", "_devices"))}
    write_report(report, folder / "report.json")
    write_manifest(folder, load_recipe("android-cpu"), {}, {}, "")
    return folder


def test_the_command_prints_and_writes_what_the_tool_said(run: Run, pretended_export: Path, tmp_path: Path) -> None:
    arguments = (
        "bench",
        str(pretended_export),
        "--runner",
        str(tool(tmp_path)),
        "--parser",
        "executorch",
        "--repetitions",
        "1",
    )
    ended = run(*arguments, "--prompt-tokens", "12", "--runner-arguments", "--text '$PROMPT' --count $GENERATE")
    assert ended.code == ExitCode.SUCCESS, ended.err
    assert "first token 90.00 ms" in ended.out
    assert "tokens not checked against the oracle" in ended.out
    assert [call[2:] for call in calls(tmp_path)] == [["--count", "64"]] * 2
    report = json.loads((pretended_export / "report.json").read_text(encoding="utf-8"))
    assert report["official_latency"][0]["by_prompt"][0]["prompt_tokens"] == 12
    assert "latency" not in report
    page = (pretended_export / "report.html").read_text(encoding="utf-8")
    assert "tokens not checked against the oracle" in page
    assert "first token 90.00 ms" in page


WRONG = {
    "no runner": (["--parser", "executorch"], "no --runner for local"),
    "an unknown parser": (
        ["--parser", "executorh", "--runner", "TOOL"],
        "did you mean 'executorch'? available: executorch, executorch-qnn, llama-bench, minibench, onnxruntime-genai",
    ),
    "arguments without a parser": (["--runner-arguments", "-m x"], "name it with --parser"),
    "near-ties of tokens that are not known": (
        ["--parser", "executorch", "--runner", "TOOL", "--accept-near-ties"],
        "no token ids",
    ),
    "an unknown name": (
        ["--parser", "executorch", "--runner", "TOOL", "--runner-arguments", "-m $MODEL"],
        "$MODEL stands for nothing; use $ARTIFACT",
    ),
    "a lonely dollar": (["--parser", "executorch", "--runner", "TOOL", "--runner-arguments", "5 $"], "begins no name"),
    "an open quote": (
        ["--parser", "executorch", "--runner", "TOOL", "--runner-arguments", "'-m"],
        "no closing quotation",
    ),
    "an app": (["--parser", "minibench", "--runner", "TOOL"], "pass --runner-arguments"),
    "a program that is not there": (["--parser", "executorch", "--runner", "nowhere"], "nowhere is not there"),
    "a prompt that is too long": (
        ["--parser", "executorch", "--runner", "TOOL", "--prompt-tokens", "99"],
        "the evaluation text has 64 tokens only",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_end_before_any_work(run: Run, pretended_export: Path, tmp_path: Path, case: str) -> None:
    options, said = WRONG[case]
    program = tool(tmp_path)
    ended = run("bench", str(pretended_export), *(str(program) if word == "TOOL" else word for word in options))
    assert ended.code == ExitCode.USAGE
    assert said in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "calls").exists()


def test_a_bad_output_ends_the_command_with_its_log_and_a_partial_section(
    run: Run, pretended_export: Path, tmp_path: Path
) -> None:
    ended = run(
        "bench", str(pretended_export), "--runner", str(tool(tmp_path, "nothing\n")), "--parser", "executorch",
        "--prompt-tokens", "12",
    )  # fmt: skip
    assert ended.code == ExitCode.INTERNAL
    (line,) = ended.err.splitlines()
    log = Path(line.rpartition("see ")[2])
    assert "nothing" in log.read_text(encoding="utf-8")
    report = json.loads((pretended_export / "report.json").read_text(encoding="utf-8"))
    assert report["official_latency"][0]["status"] == "partial"
