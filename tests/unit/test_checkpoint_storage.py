"""What `quantization_config` may say: MXFP4, which is read, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoint_errors import error_of, raised_by
from tiny_checkpoint import tiny_config, write_checkpoint, write_config

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.checkpoint.family import CONFIG_FILE, read_spec, read_spec_file

FIELD = "quantization_config.quant_method"
OTHERS = ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors")


@pytest.mark.parametrize("method", OTHERS)
def test_other_quantized_checkpoints_are_refused_before_a_weight_is_read(method: str, tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config(quantization_config={"quant_method": method, "bits": 4}))
    for message in (error_of(tmp_path), str(raised_by(lambda: read_spec(tmp_path)))):
        assert f"{tmp_path / CONFIG_FILE}: {FIELD}: {method!r} is not read, only mxfp4" in message
        assert "pass the float checkpoint" in message


@pytest.mark.parametrize("section", [{}, {"load_in_8bit": True}, {"quant_method": 4}, {"quant_method": ["mxfp4"]}])
def test_a_section_that_does_not_say_how_is_refused(section: dict[str, Any], tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config(quantization_config=section))
    assert FIELD in str(raised_by(lambda: read_spec(tmp_path)))


def test_a_section_that_is_no_object_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config(quantization_config="gptq"))
    assert "quantization_config: must be an object" in str(raised_by(lambda: read_spec(tmp_path)))


def test_a_section_of_the_text_decoder_counts_when_that_is_exported(tmp_path: Path) -> None:
    inner = tiny_config(quantization_config={"quant_method": "awq"})
    write_config(tmp_path, {"model_type": "whole", "text_config": inner})
    message = str(raised_by(lambda: read_spec_file(tmp_path / CONFIG_FILE, text_only=True)))
    assert f"text_config: {FIELD}: 'awq'" in message


@pytest.mark.parametrize("section", [None, {"quant_method": "mxfp4"}])
def test_floats_are_read_whatever_the_section_says_of_mxfp4(section: dict[str, Any] | None, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    write_config(folder, tiny_config() | {"quantization_config": section})
    assert open_checkpoint(folder).weight("final_norm").shape == (32,)
