"""A recipe that extends another: which value wins, where the parent is found, cycles and missing parents."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_files import Write, problems, usage_error

from exporter.errors import RecipeError
from exporter.recipe import load_recipe


def test_a_child_takes_every_value_that_it_does_not_change(write: Write) -> None:
    write("description: base\nseed: 5\ncache: {context: 256, chunk: 16}\n", "base")
    recipe = load_recipe(write("extends: base\ncache: {chunk: 8}\n"))
    assert (recipe.seed, recipe.cache.context, recipe.cache.chunk) == (5, 256, 8)
    assert recipe.description == "base"


def test_a_child_has_its_own_name(write: Write) -> None:
    write("name: base\n", "base")
    assert load_recipe(write("extends: base\n")).name == "mine"
    assert load_recipe(write("extends: base\nname: other\n")).name == "other"


def test_the_nearest_of_several_generations_wins(write: Write) -> None:
    write("seed: 1\ncache: {context: 100, chunk: 1, sinks: 1}\n", "grandparent")
    write("extends: grandparent\ncache: {chunk: 2, sinks: 2}\n", "parent")
    recipe = load_recipe(write("extends: parent\ncache: {sinks: 3}\n"))
    assert (recipe.seed, recipe.cache.context, recipe.cache.chunk, recipe.cache.sinks) == (1, 100, 2, 3)


def test_a_child_can_set_an_inherited_value_to_null(write: Write) -> None:
    write("cache: {window: 64}\ngates: {mean_kl_max: 0.5}\n", "base")
    recipe = load_recipe(write("extends: base\ncache: {window: null}\ngates: {mean_kl_max: null}\n"))
    assert recipe.cache.window is None
    assert recipe.gates.mean_kl_max is None


def test_a_shipped_recipe_can_be_extended_by_name(write: Write) -> None:
    recipe = load_recipe(write("extends: android-npu\ntarget: {soc: SM8750}\n"))
    assert recipe.target.soc == "SM8750"
    assert recipe.target.kind == load_recipe("android-npu").target.kind


def test_a_sibling_comes_before_a_shipped_recipe_of_the_same_name(write: Write) -> None:
    write("seed: 77\n", "android-npu")
    assert load_recipe(write("extends: android-npu\n")).seed == 77


def test_a_parent_given_as_a_file_is_found_beside_the_child(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("seed: 5\n", "base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe(write("extends: base.yaml\n")).seed == 5


def test_a_parent_beside_the_child_comes_before_one_in_the_working_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("seed: 5\n", "base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("base.yaml").write_text("seed: 6\n", encoding="utf-8")
    assert load_recipe(write("extends: base.yaml\n")).seed == 5


@pytest.mark.parametrize("parent", ["0", "false", "[]"])
def test_a_parent_that_is_false_is_not_ignored(write: Write, parent: str) -> None:
    assert "unknown recipe" in usage_error(write(f"extends: {parent}\n"))


def test_a_fault_of_a_parent_is_found_through_the_child(write: Write) -> None:
    write("cache: {chunck: 1}\n", "base")
    (problem,) = problems(write("extends: base\n"))
    assert problem.startswith("cache.chunck: unknown key; did you mean 'chunk'?")


def test_a_parent_that_is_no_yaml_is_named(write: Write) -> None:
    base = write("a: [1", "base")
    with pytest.raises(RecipeError) as caught:
        load_recipe(write("extends: base\n"))
    assert base in caught.value.message


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_cycle_is_refused_and_shown(write: Write, length: int) -> None:
    for index in range(length):
        source = write(f"extends: r{(index + 1) % length}\n", f"r{index}")
    with pytest.raises(RecipeError, match="extends itself through") as caught:
        load_recipe(source)
    assert all(f"r{index}" in str(caught.value) for index in range(length))


def test_a_cycle_is_found_however_its_paths_are_spelled(write: Write, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="extends itself"):
        load_recipe(write(f"extends: ../{tmp_path.name}/mine\n"))


@pytest.mark.parametrize("parent", ["android-nqu", "[1, 2]", "3", "{a: b}", "true", "''", "'a/b'"])
def test_a_missing_parent_is_a_usage_error(write: Write, parent: str) -> None:
    assert "unknown recipe" in usage_error(write(f"extends: {parent}\n"))


def test_a_missing_parent_gets_the_nearest(write: Write) -> None:
    assert "did you mean 'android-npu'?" in usage_error(write("extends: android-nqu\n"))


def test_a_missing_parent_is_blamed_on_the_recipe_that_extends_it(write: Write) -> None:
    source = write("extends: nothing-like-it\n")
    assert source in usage_error(source)
