"""Finding a recipe by name or file, and the error of one that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_files import usage_error

from exporter.errors import UsageError
from exporter.recipe import load_recipe, recipe_names, recipe_path
from exporter.resources import recipe_folder


def test_an_unknown_name_gets_the_nearest_and_all_shipped() -> None:
    message = usage_error("andriod-npu")
    assert "unknown recipe 'andriod-npu'; did you mean 'android-npu'?" in message
    assert all(name in message for name in recipe_names())


@pytest.mark.parametrize("name", ["absent.yaml", "absent.yml", "folder/absent.yaml"])
def test_a_missing_file_is_named(name: str) -> None:
    assert f"recipe file {name} not found" in usage_error(name)


def test_a_folder_named_like_a_recipe_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").mkdir()
    assert str(tmp_path / "mine.yaml") in usage_error(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("name", ["", ".", "a\0b", "x" * 300, "x" * 300 + ".yaml", "../recipes"])
def test_a_name_that_cannot_be_a_file_is_unknown(name: str) -> None:
    with pytest.raises(UsageError):
        load_recipe(name)


def test_a_shipped_recipe_is_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_path("android-npu") == recipe_folder() / "android-npu.yaml"
