"""Weight files that are missing, broken or hold wrong tensors: one line that names file or tensor."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from checkpoint_errors import error_of
from safetensors.torch import load_file, save_file
from tiny_checkpoint import (
    FIRST_SHARD,
    QUERY_WEIGHT,
    tiny_config,
    tiny_tensors,
    write_checkpoint,
    write_config,
    write_tokenizer,
)

from exporter.checkpoint.tensors import INDEX_FILE, SINGLE_FILE


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "absent") in error_of(tmp_path / "absent")


def test_a_file_instead_of_a_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    assert f"{file}: not a folder" in error_of(file)


def test_missing_safetensors_name_the_folder_and_both_file_names(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config())
    write_tokenizer(tmp_path)
    message = error_of(tmp_path)
    assert str(tmp_path) in message
    assert SINGLE_FILE in message
    assert INDEX_FILE in message


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_safetensors_file_is_named(tmp_path: Path, kept: int) -> None:
    path = write_checkpoint(tmp_path) / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:kept])
    assert str(path) in error_of(tmp_path)


@pytest.mark.parametrize(
    "garbage", [b"not safetensors at all", b"\xff" * 4096, b"<!DOCTYPE html>\n<html>\n</html>\n" * 9]
)
def test_a_garbage_safetensors_file_is_named(tmp_path: Path, garbage: bytes) -> None:
    path = write_checkpoint(tmp_path) / SINGLE_FILE
    path.write_bytes(garbage)
    assert str(path) in error_of(tmp_path)


def test_a_checkpoint_that_is_quantized_already_is_told_apart_from_a_missing_shard(tmp_path: Path) -> None:
    """Published mixtures hold experts in 4 bits under names of their own."""
    write_checkpoint(tmp_path)
    write_config(tmp_path, tiny_config() | {"quantization_config": {"quant_method": "mxfp4"}})
    packed = {
        name.replace("q_proj.weight", "q_proj_blocks"): tensor for name, tensor in tiny_tensors(tiny_config()).items()
    }
    save_file(packed, tmp_path / SINGLE_FILE)
    message = error_of(tmp_path)
    assert QUERY_WEIGHT in message
    assert "quantized already" in message


def test_a_corrupt_shard_is_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, shards=2) / FIRST_SHARD
    path.write_bytes(path.read_bytes()[:200])
    assert str(path) in error_of(tmp_path)


def test_a_shard_that_the_index_lists_but_is_missing_is_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, shards=2) / FIRST_SHARD
    path.unlink()
    message = error_of(tmp_path)
    assert str(path) in message
    assert INDEX_FILE in message


def test_a_tensor_that_the_index_lists_but_its_shard_lacks_is_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, shards=2) / FIRST_SHARD
    tensors = load_file(path)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, path)
    message = error_of(tmp_path)
    assert lost in message
    assert str(path) in message


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', "null"])
def test_an_index_that_is_no_shard_index_is_named(tmp_path: Path, text: str) -> None:
    index = write_checkpoint(tmp_path, shards=2) / INDEX_FILE
    index.write_text(text, encoding="utf-8")
    assert str(index) in error_of(tmp_path)


@pytest.mark.parametrize("name", [QUERY_WEIGHT, "model.embed_tokens.weight", "model.norm.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    del tensors[name]
    message = error_of(write_checkpoint(tmp_path, config, tensors))
    assert name in message
    assert str(tmp_path) in message


def test_a_missing_head_suggests_tied_embeddings(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(tied=True))
    write_config(tmp_path, tiny_config(tied=False))
    message = error_of(tmp_path)
    assert "lm_head.weight" in message
    assert "tie_word_embeddings" in message


def test_a_wrong_shape_names_the_tensor_and_both_shapes(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = {**tiny_tensors(config), QUERY_WEIGHT: torch.zeros(32, 31)}
    message = error_of(write_checkpoint(tmp_path, config, tensors))
    assert QUERY_WEIGHT in message
    assert "(32, 31)" in message
    assert "(32, 32)" in message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config, dtype=dtype)
    tensors[QUERY_WEIGHT][3, 5] = value
    message = error_of(write_checkpoint(tmp_path, config, tensors))
    assert QUERY_WEIGHT in message
    assert SINGLE_FILE in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_an_integer_weight_is_named_with_its_type(tmp_path: Path, dtype: torch.dtype) -> None:
    config = tiny_config()
    tensors = {**tiny_tensors(config), QUERY_WEIGHT: torch.ones(32, 32, dtype=dtype)}
    message = error_of(write_checkpoint(tmp_path, config, tensors))
    assert QUERY_WEIGHT in message
    assert str(dtype) in message
