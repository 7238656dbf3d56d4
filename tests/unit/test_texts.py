"""Texts fill the windows that the recipe asks for, or the export ends with the setting that would fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from exporter.checkpoint.text import TextCodec
from exporter.errors import UsageError
from exporter.recipe import load_recipe
from exporter.texts import Texts, read_texts

SETTINGS = (
    "calibration.window=16",
    "calibration.tokens=64",
    "calibration.activation_tokens=64",
    "verify.window=16",
    "verify.windows=2",
    "verify.quality_windows=3",
)


def read(tmp_path: Path, calibration_tokens: int, evaluation_tokens: int, *overrides: str) -> Texts:
    """Reads two texts of so many one-word tokens with a model that begins a window with one more token."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    paths = tmp_path / "calibration.txt", tmp_path / "evaluation.txt"
    for path, count in zip(paths, (calibration_tokens, evaluation_tokens), strict=True):
        path.write_text("a " * count, encoding="utf-8")
    return read_texts(load_recipe("android-npu", SETTINGS + overrides), *paths, TextCodec(tokenizer, 1, ()))


def test_as_many_windows_as_asked_for(tmp_path: Path) -> None:
    texts = read(tmp_path, 100, 100)
    assert texts == Texts([[1, *[0] * 15]] * 4, [[1, *[0] * 15]] * 3)
    recipe = load_recipe("android-npu", (*SETTINGS, "calibration.tokens=96"))
    assert len(read(tmp_path, 90, 45, "calibration.tokens=96").activations(recipe)) == 4


def test_a_short_calibration_text_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, 59, 100)
    assert "calibration.txt fills 3 windows of 16 tokens, the recipe asks for 4" in caught.value.message
    assert caught.value.next_step == "pass a longer text, or --set calibration.tokens=48"


@pytest.mark.parametrize(
    ("tokens", "settings"),
    [(30, "verify.quality_windows=2"), (15, "verify.windows=1 --set verify.quality_windows=1")],
)
def test_a_short_evaluation_text_names_every_setting(tmp_path: Path, tokens: int, settings: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, 100, tokens)
    assert "the recipe asks for 3" in caught.value.message
    assert caught.value.next_step == f"pass a longer text, or --set {settings}"
