"""Tokenizer and generation settings: what they set, and the error that names the file that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_errors import error_of
from tiny_checkpoint import VOCAB_SIZE, tiny_config, write_checkpoint, write_tokenizer

from exporter.checkpoint.checkpoint import open_checkpoint


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
