"""Texts for calibration and evaluation: how they are cut into windows, and the error of those that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_errors import raised_by
from tiny_checkpoint import write_checkpoint

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.checkpoint.text import DOCUMENT_SEPARATOR, TextCodec, read_text
from exporter.cli import main
from exporter.errors import ExitCode, UsageError


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
