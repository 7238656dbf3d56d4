"""States of recurrent layers in the C++ runner of ONNX: conversations of one process give the oracle's token ids, each from states of 0."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx_ir", reason="the onnx extra is not installed")

import onnxruntime
from all_cases import CASES
from onnx_artifact import lower_onnx
from quantized_case import quantized_case

from device_tests import harness
from device_tests.process import LineStream
from device_tests.protocol import Repetition, RunnerRequest, parse_line
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.verify.greedy import greedy_reference
from tests.unit.helpers import random_tokens

INCLUDE_VARIABLE = "ONNXRUNTIME_INCLUDE"
SOURCE = Path(harness.__file__).parent / "runners" / "onnxruntime_runner.cpp"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    include, compiler = Path(os.environ.get(INCLUDE_VARIABLE, "/usr/include/onnxruntime")), shutil.which("g++")
    if not (include / "onnxruntime_c_api.h").is_file() or compiler is None:
        pytest.skip(f"no g++, or no onnxruntime_c_api.h; set {INCLUDE_VARIABLE} to its folder")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    folder = tmp_path_factory.mktemp("runner")
    shutil.copy(library, folder / "libonnxruntime.so.1")
    command = [compiler, "-std=c++17", "-O1", f"-I{include}", str(SOURCE), str(folder / "libonnxruntime.so.1")]
    subprocess.run([*command, "-Wl,-rpath,$ORIGIN", "-lpthread", "-o", str(folder / "runner")], check=True)
    return folder / "runner"


@torch.no_grad()
@pytest.mark.parametrize("family", ["falcon_h1", "mamba"])
def test_every_conversation_gives_the_token_ids_of_the_oracle(runner: Path, tmp_path: Path, family: str) -> None:
    decoder = quantized_case(CASES[family], tmp_path, KvFormat(8, KvScaling.PER_TOKEN), ScaleFormat.FP16)
    lower_onnx(decoder, tmp_path)
    prompts = [tuple(random_tokens(decoder.spec, count, seed=count)) for count in (9, 20)]
    wanted = [greedy_reference(decoder, prompt, 6) for prompt in prompts]
    request = RunnerRequest(str(tmp_path), tuple(prompts), 6, 1, 2, ())
    (tmp_path / "request.json").write_text(request.to_json(), encoding="utf-8")
    with closing(LineStream([str(runner), str(tmp_path / "request.json")], 60)) as stream:
        events = [event for line in stream.lines() if (event := parse_line(line)) is not None]
    said = [(event.prompt, event.token_ids) for event in events if isinstance(event, Repetition)]
    assert said == [(number, wanted[number].token_ids) for number in (0, 0, 0, 1, 1, 1)]
