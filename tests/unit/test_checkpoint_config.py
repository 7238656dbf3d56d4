"""A `config.json` that is missing, wrong or unsupported: one line that names the field."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from checkpoint_errors import error_of, spec_error
from tiny_checkpoint import FAMILIES, tiny_config, write_checkpoint, write_config

from exporter.checkpoint.family import read_spec


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
@pytest.mark.parametrize("kind", ["ntk", "proportional", "yarm"])
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
