"""LoRA adapters: what merging adds to the weights, and the error of every adapter that cannot be merged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_errors import error_of, read_everything
from tiny_checkpoint import (
    QUERY,
    QUERY_WEIGHT,
    lora_pair,
    tensor_names,
    tiny_config,
    tiny_tensors,
    write_adapter,
    write_checkpoint,
    write_config,
    write_tensors,
)

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.checkpoint.tensors import SINGLE_FILE
from exporter.decoder.weight_names import decoder_weights


def merged_query(tmp_path: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    """The query matrix of layer 0 with an adapter merged, minus the base weight."""
    config = tiny_config()
    folder = write_checkpoint(tmp_path / "model", config)
    checkpoint = open_checkpoint(folder, write_adapter(tmp_path / "adapter", tensors, **settings))
    return checkpoint.weight("layers.0.attention.query") - tiny_tensors(config)[QUERY_WEIGHT]


def product(tensors: dict[str, torch.Tensor], module: str = QUERY) -> torch.Tensor:
    return tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]


@pytest.mark.parametrize(("rank", "alpha"), [(2, 8), (4, 4), (8, 1)])
def test_merging_adds_alpha_over_rank_times_b_a(tmp_path: Path, rank: int, alpha: int) -> None:
    tensors = lora_pair(rank)
    update = merged_query(tmp_path, tensors, lora_alpha=alpha)
    torch.testing.assert_close(update, alpha / rank * product(tensors), atol=1e-5, rtol=1e-5)


def test_merging_leaves_other_weights_alone(tmp_path: Path) -> None:
    config = tiny_config()
    folder = write_checkpoint(tmp_path / "model", config)
    checkpoint = open_checkpoint(folder, write_adapter(tmp_path / "adapter", lora_pair()))
    names = tensor_names(config)
    for weight in decoder_weights(checkpoint.spec):
        same = torch.equal(checkpoint.weight(weight.name), tiny_tensors(config)[names[weight.name]])
        assert same is (weight.name != "layers.0.attention.query"), weight.name


def test_rank_stabilized_adapters_scale_by_the_root_of_the_rank(tmp_path: Path) -> None:
    tensors = lora_pair(rank=4)
    update = merged_query(tmp_path, tensors, use_rslora=True)
    torch.testing.assert_close(update, 8 / 2 * product(tensors), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [
        ("q_proj", 2),
        (r"layers\.0\.self_attn\.q_proj", 2),
        (r"model\.layers\.\d\.self_attn\.q_proj", 2),
        ("k_proj", 8),
        ("proj", 8),
    ],
)
def test_alpha_pattern_sets_the_alpha_of_the_modules_that_it_matches(tmp_path: Path, pattern: str, alpha: int) -> None:
    tensors = lora_pair()
    update = merged_query(tmp_path, tensors, alpha_pattern={pattern: 2})
    torch.testing.assert_close(update, alpha / 2 * product(tensors), atol=1e-5, rtol=1e-5)


def test_the_first_matching_alpha_pattern_wins_as_in_peft(tmp_path: Path) -> None:
    tensors = lora_pair()
    update = merged_query(tmp_path, tensors, alpha_pattern={r"layers\.0\.self_attn\.q_proj": 2, "q_proj": 6})
    torch.testing.assert_close(update, 1.0 * product(tensors), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("infix", ["", ".modules_to_save.default"])
def test_modules_to_save_replace_the_weight(tmp_path: Path, infix: str) -> None:
    norm = torch.full((32,), 3.0)
    adapter = write_adapter(tmp_path / "adapter", {f"model.norm{infix}.weight": norm, **lora_pair()})
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model"), adapter)
    assert torch.equal(checkpoint.weight("final_norm"), norm)


@pytest.mark.parametrize(("rows", "columns"), [(32, 31), (16, 32), (48, 32)])
def test_an_adapter_of_the_wrong_shape_names_weight_and_shapes(tmp_path: Path, rows: int, columns: int) -> None:
    tensors = {f"{QUERY}.lora_A.weight": torch.ones(2, columns), f"{QUERY}.lora_B.weight": torch.ones(rows, 2)}
    message = error_of(write_checkpoint(tmp_path / "model"), write_adapter(tmp_path / "adapter", tensors))
    assert QUERY_WEIGHT in message
    assert f"({rows}, {columns})" in message
    assert "(32, 32)" in message


def test_sides_of_different_rank_are_refused(tmp_path: Path) -> None:
    tensors = {f"{QUERY}.lora_A.weight": torch.ones(2, 32), f"{QUERY}.lora_B.weight": torch.ones(32, 3)}
    message = error_of(write_checkpoint(tmp_path / "model"), write_adapter(tmp_path / "adapter", tensors))
    assert QUERY in message


def test_sides_that_are_no_matrices_are_refused(tmp_path: Path) -> None:
    tensors = {f"{QUERY}.lora_A.weight": torch.ones(2), f"{QUERY}.lora_B.weight": torch.ones(32, 2)}
    message = error_of(write_checkpoint(tmp_path / "model"), write_adapter(tmp_path / "adapter", tensors))
    assert QUERY in message


def test_a_replacement_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", {"model.norm.weight": torch.ones(31)})
    message = error_of(write_checkpoint(tmp_path / "model"), adapter)
    assert "model.norm.weight" in message


def test_an_adapter_for_a_tensor_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora_pair(module="model.layers.7.self_attn.q_proj"))
    message = error_of(write_checkpoint(tmp_path / "model"), adapter)
    assert str(adapter) in message
    assert "model.layers.7.self_attn.q_proj.weight" in message


@pytest.mark.parametrize("missing", ["A", "B"])
def test_an_adapter_that_lacks_a_side_is_refused(tmp_path: Path, missing: str) -> None:
    tensors = lora_pair()
    del tensors[f"{QUERY}.lora_{missing}.weight"]
    message = error_of(write_checkpoint(tmp_path / "model"), write_adapter(tmp_path / "adapter", tensors))
    assert f"lacks lora_{missing}" in message
    assert QUERY_WEIGHT in message


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": None}, "peft_type"),
    ],
    ids=str,
)
def test_unsupported_kinds_of_adapter_are_refused(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    adapter = write_adapter(tmp_path / "adapter", lora_pair(), **settings)
    message = error_of(write_checkpoint(tmp_path / "model"), adapter)
    assert named in message
    assert "adapter_config.json" in message


def test_an_adapter_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    tensors = lora_pair()
    tensors[f"{QUERY}.lora_A.weight"][0, 0] = math.nan
    message = error_of(write_checkpoint(tmp_path / "model"), write_adapter(tmp_path / "adapter", tensors))
    assert f"{QUERY}.lora_A.weight" in message


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_a_missing_or_corrupt_adapter_file_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = write_adapter(tmp_path / "adapter", lora_pair()) / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert str(path) in error_of(write_checkpoint(tmp_path / "model"), tmp_path / "adapter")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"peft_type": "LORA", "lora_alpha": "8x"}',
        '{"peft_type": "LORA", "lora_alpha": null}',
        '{"peft_type": "LORA", "lora_alpha": 8, "use_rslora": "yes"}',
        '{"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": ["q_proj"]}',
        '{"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {"q_proj": "2"}}',
        '{"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {"(": 2}}',
    ],
)
def test_adapter_settings_of_the_wrong_type_are_refused(tmp_path: Path, content: str) -> None:
    path = write_adapter(tmp_path / "adapter", lora_pair()) / "adapter_config.json"
    path.write_text(content, encoding="utf-8")
    message = error_of(write_checkpoint(tmp_path / "model"), tmp_path / "adapter")
    assert "adapter" in message


def test_weights_on_disk_stay_as_they_were(tmp_path: Path) -> None:
    config = tiny_config()
    folder = write_checkpoint(tmp_path / "model", config)
    before = (folder / SINGLE_FILE).read_bytes()
    read_everything(folder, write_adapter(tmp_path / "adapter", lora_pair()))
    assert (folder / SINGLE_FILE).read_bytes() == before


def test_an_adapter_over_shards_equals_one_over_a_single_file(tmp_path: Path) -> None:
    config = tiny_config()
    tensors = tiny_tensors(config)
    adapter = write_adapter(tmp_path / "adapter", lora_pair())
    for shards, name in ((1, "single"), (2, "sharded")):
        write_config(tmp_path / name, config)
        write_tensors(tmp_path / name, tensors, shards)
    single, sharded = (open_checkpoint(tmp_path / name, adapter) for name in ("single", "sharded"))
    assert torch.equal(single.weight("layers.0.attention.query"), sharded.weight("layers.0.attention.query"))


def test_an_adapter_of_a_fused_tensor_reaches_every_weight_in_it(tmp_path: Path) -> None:
    config = tiny_config("phi3", tied=False, original_max_position_embeddings=512)
    tensors, module = tiny_tensors(config), "model.layers.0.self_attn.qkv_proj"
    pair = {f"{module}.lora_A.weight": torch.randn(2, 32), f"{module}.lora_B.weight": torch.randn(64, 2)}
    folder = write_checkpoint(tmp_path / "base", config, tensors)
    merged = open_checkpoint(folder, write_adapter(tmp_path / "adapter", pair))
    whole = tensors[f"{module}.weight"] + 8 / 2 * pair[f"{module}.lora_B.weight"] @ pair[f"{module}.lora_A.weight"]
    parts = [merged.weight(f"layers.0.attention.{name}") for name in ("query", "key", "value")]
    torch.testing.assert_close(torch.cat(parts), whole)
