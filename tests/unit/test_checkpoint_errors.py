"""Checkpoint folders: what is read, and the one-line error of everything that cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import (
    FAMILIES,
    VOCAB_SIZE,
    tensor_names,
    tiny_config,
    tiny_tensors,
    write_adapter,
    write_checkpoint,
    write_config,
    write_tensors,
    write_tokenizer,
)

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.checkpoint.family import read_spec
from exporter.checkpoint.tensors import INDEX_FILE, SINGLE_FILE
from exporter.checkpoint.text import DOCUMENT_SEPARATOR, TextCodec, read_text
from exporter.cli import main
from exporter.decoder.spec import decoder_weights
from exporter.errors import CheckpointError, ExitCode, SlmExportError, UsageError

QUERY = "model.layers.0.self_attn.q_proj"
QUERY_WEIGHT = f"{QUERY}.weight"
FIRST_SHARD = "model-00001-of-00002.safetensors"


def raised_by(action: Callable[[], object], kind: type[SlmExportError] = CheckpointError) -> SlmExportError:
    """The error of `action`, after checking what holds for every user error: exit code 2, one line, a next step."""
    with pytest.raises(kind) as caught:
        action()
    fault = caught.value
    assert fault.exit_code == ExitCode.USAGE
    assert "\n" not in str(fault)
    assert fault.message
    assert fault.next_step
    return fault


def read_everything(folder: Path, adapter: Path | None = None) -> None:
    """Opens a checkpoint and reads each weight and the tokenizer, as an export does."""
    checkpoint = open_checkpoint(folder, adapter)
    checkpoint.text_codec()
    for weight in decoder_weights(checkpoint.spec):
        checkpoint.weight(weight.name)


def error_of(folder: Path, adapter: Path | None = None) -> str:
    return str(raised_by(lambda: read_everything(folder, adapter)))


def spec_error(tmp_path: Path, **changes: Any) -> str:
    """The error of a checkpoint that is sound but for `changes` to its config."""
    write_config(tmp_path, tiny_config(**changes))
    return str(raised_by(lambda: read_spec(tmp_path)))


# What is read


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


# Weights files


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


# config.json


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "config.json").unlink()
    assert str(tmp_path / "config.json") in error_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"model_type: llama", b"\xff\xfe\x00", b"[1, 2]", b'"llama"', b"null"])
def test_a_config_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    (write_checkpoint(tmp_path) / "config.json").write_bytes(content)
    assert str(tmp_path / "config.json") in error_of(tmp_path)


@pytest.mark.parametrize(("given", "meant"), [("lama", "llama"), ("qwen33", "qwen3"), ("Mistral", "mistral")])
def test_an_unknown_model_type_names_the_nearest_and_all_supported(tmp_path: Path, given: str, meant: str) -> None:
    message = spec_error(tmp_path, model_type=given)
    assert "config.json: model_type" in message
    assert f"did you mean '{meant}'?" in message
    assert all(family in message for family in FAMILIES)


def test_a_missing_model_type_names_the_field_and_all_supported(tmp_path: Path) -> None:
    message = spec_error(tmp_path, model_type=None)
    assert "model_type" in message
    assert all(family in message for family in FAMILIES)


@pytest.mark.parametrize("value", [["llama"], {"name": "llama"}, 3, True])
def test_a_model_type_that_is_no_text_is_refused(tmp_path: Path, value: object) -> None:
    assert "model_type" in spec_error(tmp_path, model_type=value)


def test_key_value_heads_that_do_not_divide_the_query_heads_are_refused(tmp_path: Path) -> None:
    message = spec_error(tmp_path, num_key_value_heads=3)
    assert "num_key_value_heads" in message
    assert "num_attention_heads=4" in message


def test_heads_that_do_not_divide_the_hidden_size_are_refused_without_a_head_dim(tmp_path: Path) -> None:
    message = spec_error(tmp_path, num_attention_heads=6, num_key_value_heads=2, head_dim=None)
    assert "num_attention_heads" in message
    assert "hidden_size=32" in message


def test_an_explicit_head_dim_frees_the_hidden_size(tmp_path: Path) -> None:
    write_config(tmp_path, tiny_config(num_attention_heads=6, num_key_value_heads=2, head_dim=10))
    attention = read_spec(tmp_path).layers[0].attention
    assert (attention.query_heads, attention.head_dim) == (6, 10)


def test_an_odd_head_dim_is_refused(tmp_path: Path) -> None:
    message = spec_error(tmp_path, head_dim=7)
    assert "head_dim" in message
    assert "7" in message


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("kind", ["dynamic", "longrope", "yarm"])
def test_an_unsupported_rope_type_is_named(tmp_path: Path, place: str, kind: str) -> None:
    message = spec_error(tmp_path, **{place: {"rope_type": kind, "factor": 2.0}})
    assert f"rope_type '{kind}'" in message
    assert "config.json" in message
    assert all(known in message for known in ("linear", "llama3", "yarn"))


def test_rope_scaling_without_its_factor_is_refused(tmp_path: Path) -> None:
    assert "factor" in spec_error(tmp_path, rope_scaling={"rope_type": "linear"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_theta", "ten thousand"),
        ("rope_theta", [10000.0]),
        ("rope_theta", 0),
        ("rope_theta", math.nan),
        ("rope_theta", True),
        ("rope_parameters", "linear"),
        ("rope_parameters", {"rope_type": "yarn", "factor": 2.0, "attention_factor": "one"}),
        ("partial_rotary_factor", "half"),
        ("rope_scaling", {"rope_type": "linear", "factor": "two"}),
        ("rope_scaling", {"rope_type": "linear", "factor": None}),
        ("rope_scaling", {"rope_type": ["linear"], "factor": 2.0}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "beta_fast": "32 rounds"}),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0, "original_max_position_embeddings": "4k"}),
    ],
    ids=str,
)
def test_a_rotary_setting_of_the_wrong_type_is_refused(tmp_path: Path, field: str, value: object) -> None:
    assert "config.json" in spec_error(tmp_path, **{field: value})


def test_a_partial_rotary_factor_that_rotates_an_odd_number_of_channels_is_refused(tmp_path: Path) -> None:
    assert "partial_rotary_factor" in spec_error(tmp_path, partial_rotary_factor=0.4)  # 3 of 8 channels


@pytest.mark.parametrize("share", [0, 0.1, -0.5, 1.5])
def test_a_partial_rotary_factor_that_rotates_no_or_too_many_channels_is_refused(tmp_path: Path, share: float) -> None:
    assert "partial_rotary_factor" in spec_error(tmp_path, partial_rotary_factor=share)


def test_max_window_layers_may_be_zero(tmp_path: Path) -> None:
    changes = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
    write_config(tmp_path, tiny_config("qwen3", **changes))
    assert [layer.attention.window for layer in read_spec(tmp_path).layers] == [16, 16]


@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ],
)
@pytest.mark.parametrize("value", [None, "32", 32.0, True, 0, -4])
def test_a_size_that_is_missing_or_no_positive_whole_number_names_its_field(
    tmp_path: Path, field: str, value: object
) -> None:
    assert f"config.json: {field}: " in spec_error(tmp_path, **{field: value})


@pytest.mark.parametrize("value", ["1e-6", True, [1e-6]])
def test_an_eps_that_is_no_number_names_its_field(tmp_path: Path, value: object) -> None:
    assert "rms_norm_eps" in spec_error(tmp_path, rms_norm_eps=value)


@pytest.mark.parametrize("field", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
def test_a_switch_that_is_no_boolean_names_its_field(tmp_path: Path, field: str) -> None:
    assert f"config.json: {field}: " in spec_error(tmp_path, **{field: "yes"})


def test_an_unknown_activation_names_the_nearest(tmp_path: Path) -> None:
    message = spec_error(tmp_path, hidden_act="silo")
    assert "hidden_act" in message
    assert "did you mean 'silu'?" in message


@pytest.mark.parametrize("value", [["silu"], {"name": "silu"}])
def test_an_activation_that_is_no_text_is_refused(tmp_path: Path, value: object) -> None:
    assert "hidden_act" in spec_error(tmp_path, hidden_act=value)


@pytest.mark.parametrize(
    "kinds", ["full_attention", ["full_attention"], ["full_attention", "chunked_attention"], [["full_attention"], 3]]
)
def test_layer_types_that_do_not_describe_every_layer_are_refused(tmp_path: Path, kinds: object) -> None:
    assert "layer_types" in spec_error(tmp_path, family="qwen3", layer_types=kinds)


def test_a_windowed_layer_without_a_window_is_refused(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"]
    assert "sliding_window" in spec_error(tmp_path, family="mistral", layer_types=kinds)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_max_window_layers_that_is_no_number_is_refused(tmp_path: Path, family: str) -> None:
    changes = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": "1"}
    assert "max_window_layers" in spec_error(tmp_path, family=family, **changes)


# Tokenizer and generation settings


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "tokenizer.json").unlink()
    assert str(tmp_path / "tokenizer.json") in error_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff\xfe\x00", b'{"model": {"type": "BPE"}}'])
def test_a_corrupt_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    (write_checkpoint(tmp_path) / "tokenizer.json").write_bytes(content)
    assert str(tmp_path / "tokenizer.json") in error_of(tmp_path)


def test_a_tokenizer_larger_than_the_vocabulary_names_both_sizes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    write_tokenizer(tmp_path, [f"<extra{index}>" for index in range(10)])
    message = error_of(tmp_path)
    assert str(tmp_path / "tokenizer.json") in message
    assert "266" in message
    assert f"vocab_size={VOCAB_SIZE}" in message


def test_a_tokenizer_smaller_than_the_vocabulary_is_fine(tmp_path: Path) -> None:
    codec = open_checkpoint(write_checkpoint(tmp_path)).text_codec()
    assert codec.decode(codec.encode("Żółw & co")) == "Żółw & co"


def test_generation_settings_override_the_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"bos_token_id": 5, "eos_token_id": [6, 7]}', encoding="utf-8")
    codec = open_checkpoint(tmp_path).text_codec()
    assert codec.encode("")[0] == 5
    assert codec.end_ids == (6, 7)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"eos_token_id": "</s>"}',
        '{"eos_token_id": [[1]]}',
        '{"eos_token_id": true}',
        '{"eos_token_id": 1.0}',
        '{"bos_token_id": "<s>"}',
    ],
)
def test_broken_generation_settings_are_named(tmp_path: Path, content: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(content, encoding="utf-8")
    assert "generation_config.json" in error_of(tmp_path)


@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id"])
def test_a_token_id_of_the_wrong_type_in_the_config_names_the_field(tmp_path: Path, field: str) -> None:
    message = error_of(write_checkpoint(tmp_path, tiny_config(**{field: "</s>"})))
    assert f"config.json: {field}: " in message


# Texts


@pytest.fixture
def codec(tmp_path: Path) -> TextCodec:
    return open_checkpoint(write_checkpoint(tmp_path / "codec")).text_codec()


def test_a_missing_text_is_named_with_its_purpose(tmp_path: Path) -> None:
    path = tmp_path / "absent.txt"
    message = str(raised_by(lambda: read_text(path, "calibration"), UsageError))
    assert f"calibration file {path} not found" in message


@pytest.mark.parametrize("content", [b"", b" ", b"\n\n\t  \r\n"])
def test_an_empty_or_blank_text_is_named_with_its_purpose(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "blank.txt"
    path.write_bytes(content)
    assert f"calibration file {path} is empty" in str(raised_by(lambda: read_text(path, "calibration"), UsageError))


@pytest.mark.parametrize("content", [b"caf\xe9", b"\xff\xfeh\x00i\x00", b"\x1f\x8b\x08\x00gzip"])
def test_a_text_that_is_not_utf8_is_named_with_its_purpose(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "binary.txt"
    path.write_bytes(content)
    message = str(raised_by(lambda: read_text(path, "evaluation"), UsageError))
    assert f"evaluation file {path} is not UTF-8" in message


def test_a_folder_instead_of_a_text_is_named(tmp_path: Path) -> None:
    assert str(tmp_path) in str(raised_by(lambda: read_text(tmp_path, "calibration"), UsageError))


def test_windows_have_the_exact_length_and_begin_with_the_begin_id(codec: TextCodec) -> None:
    windows = codec.windows("abcdefghij", 4)
    assert [codec.decode(window[1:]) for window in windows] == ["abc", "def", "ghi"]
    assert all(window[0] == codec.begin_id and len(window) == 4 for window in windows)
    assert codec.windows("abcdefghij", 4, limit=2) == windows[:2]


def test_a_document_separator_becomes_a_blank_line(codec: TextCodec) -> None:
    (window,) = codec.windows(f"ab\n{DOCUMENT_SEPARATOR}\ncd", 7)
    assert codec.decode(window[1:]) == "ab\n\ncd"


def test_a_text_shorter_than_one_window_states_both_lengths(codec: TextCodec) -> None:
    message = str(raised_by(lambda: codec.windows("abcd", 10), UsageError))
    assert "4 tokens" in message
    assert "9" in message


@pytest.mark.parametrize("purpose", ["calibration", "evaluation"])
def test_an_export_names_the_text_that_is_too_short(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cache_folder: Path,
    purpose: str,
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short", encoding="utf-8")
    model = write_checkpoint(tmp_path / "model")
    command = ["slm-export", "--recipe", "android-npu", "--model", str(model), "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*command, f"--{purpose}", str(short)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == ExitCode.USAGE
    assert not (tmp_path / "out").exists()
    assert str(short) in capsys.readouterr().err


# LoRA adapters


def lora_pair(rank: int = 2, seed: int = 1, module: str = QUERY) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, 32, generator=random),
        f"{module}.lora_B.weight": torch.randn(32, rank, generator=random),
    }


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
