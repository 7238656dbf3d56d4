"""What is read of a sound checkpoint folder: every weight unchanged, in any float type and any sharding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_errors import read_everything
from tiny_checkpoint import (
    FAMILIES,
    FIRST_SHARD,
    QUERY_WEIGHT,
    lora_pair,
    tensor_names,
    tiny_config,
    tiny_tensors,
    write_adapter,
    write_checkpoint,
)

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.decoder.weight_names import decoder_weights


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_every_weight_of_every_family_is_read_unchanged(tmp_path: Path, family: str, tied: bool, bias: bool) -> None:
    config = tiny_config(family, tied, bias)
    tensors = tiny_tensors(config)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, config, tensors))
    read = {
        tensor_names(config)[weight.name]: checkpoint.weight(weight.name) for weight in decoder_weights(checkpoint.spec)
    }
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert ("lm_head.weight" in read) is not tied


def test_biases_are_expected_where_the_family_has_them() -> None:
    plain = set(tensor_names(tiny_config("llama")))
    biased = set(tensor_names(tiny_config("llama", bias=True))) - plain
    assert {name.split(".", 2)[2] for name in biased} == {
        f"{matrix}.bias"
        for matrix in (
            "attention.query",
            "attention.key",
            "attention.value",
            "attention.output",
            "feed_forward.gate",
            "feed_forward.up",
            "feed_forward.down",
        )
    }
    qwen2 = {name for name in tensor_names(tiny_config("qwen2")) if name.endswith(".bias")}
    assert {name.split(".", 2)[2] for name in qwen2} == {f"attention.{name}.bias" for name in ("query", "key", "value")}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config, dtype=dtype)
    weight = open_checkpoint(write_checkpoint(tmp_path, config, tensors)).weight("layers.0.attention.query")
    assert weight.dtype == torch.float32
    assert torch.equal(weight, tensors[QUERY_WEIGHT].float())


def test_a_sharded_checkpoint_equals_the_single_file(tmp_path: Path) -> None:
    config = tiny_config("qwen3", tied=False)
    tensors = tiny_tensors(config)
    single = open_checkpoint(write_checkpoint(tmp_path / "single", config, tensors))
    sharded = open_checkpoint(write_checkpoint(tmp_path / "sharded", config, tensors, shards=3))
    assert len(sharded.tensors.paths()) == 3
    assert sharded.spec == single.spec
    for weight in decoder_weights(single.spec):
        assert torch.equal(single.weight(weight.name), sharded.weight(weight.name)), weight.name


def test_surplus_tensors_do_no_harm(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = {**tiny_tensors(config), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    read_everything(write_checkpoint(tmp_path, config, tensors))


def test_input_files_are_all_that_the_export_reads(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=2)
    adapter = write_adapter(tmp_path / "adapter", lora_pair())
    names = sorted(path.name for path in open_checkpoint(folder, adapter).input_files())
    assert names == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
        FIRST_SHARD,
        "model-00002-of-00002.safetensors",
        "tokenizer.json",
    ]
