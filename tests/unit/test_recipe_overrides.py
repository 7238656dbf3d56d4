"""Overrides by `--set`: what they change, how they are written, and that they obey the schema."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from recipe_files import Write, problems, usage_error

from exporter.recipe import Recipe, load_recipe


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("kv_cache.bits=4", lambda recipe: recipe.kv_cache.bits == 4),
        ("seed=-3", lambda recipe: recipe.seed == -3),
        ("cache.window=null", lambda recipe: recipe.cache.window is None),
        ("cache.window=", lambda recipe: recipe.cache.window is None),
        ("kv_cache.rotation=true", lambda recipe: recipe.kv_cache.rotation is True),
        ("weights.damping=0.05", lambda recipe: recipe.weights.damping == 0.05),
        ("description=a=b", lambda recipe: recipe.description == "a=b"),
        ("name=other", lambda recipe: recipe.name == "other"),
        ("cache={context: 64}", lambda recipe: recipe.cache.context == 64),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_override_sets_a_value(write: Write, override: str, read: Callable[[Recipe], bool]) -> None:
    assert read(load_recipe(write("cache: {window: 32}\n"), (override,)))


def test_an_override_leaves_the_rest_of_its_section_alone(write: Write) -> None:
    recipe = load_recipe(write("cache: {context: 256, chunk: 16}\n"), ("cache.chunk=8",))
    assert (recipe.cache.context, recipe.cache.chunk) == (256, 8)


def test_the_last_of_several_overrides_wins(write: Write) -> None:
    assert load_recipe(write(""), ("seed=1", "seed=2")).seed == 2


@pytest.mark.parametrize("override", ["kv_cache.bits", "", "=8", "kv_cache.bits 8"])
def test_an_override_without_name_or_value_shows_how_it_is_written(write: Write, override: str) -> None:
    message = usage_error(write(""), override)
    assert f"--set {override}" in message
    assert "section.field=value" in message


@pytest.mark.parametrize("override", ["seed.low=1", "kv_cache.bits.low=1"])
def test_an_override_below_a_value_is_refused(write: Write, override: str) -> None:
    message = usage_error(write("seed: 1\nkv_cache: {bits: 8}\n"), override)
    assert f"--set {override}" in message
    assert "not a section" in message


@pytest.mark.parametrize("text", ["[1", "{", "'open", "*nothing", "2001-99-99", "!!int abc", "0b_"])
def test_an_override_whose_value_is_no_yaml_is_refused(write: Write, text: str) -> None:
    message = usage_error(write(""), f"seed={text}")
    assert f"--set seed={text}" in message
    assert "is not a value" in message


@pytest.mark.parametrize("override", ["kv_cache.bitz=8", "kv_cach.bits=8", "kv_cache.bits=5", "a.b.c=1", ".=1", "..=1"])
def test_an_override_obeys_the_schema(write: Write, override: str) -> None:
    assert len(problems(write(""), override)) == 1


def test_a_fault_of_an_override_is_told_from_one_of_the_file(write: Write) -> None:
    source = write("sed: 1\nkv_cache: {bits: 5}\n")
    found = problems(source, "cache.chunk=0", "kv_cache.bits=6", "seed=2")
    assert {problem.split(":")[0]: problem.endswith(" (given by --set)") for problem in found} == {
        "sed": False,
        "cache.chunk": True,
        "kv_cache.bits": True,
    }


def test_faults_of_file_and_overrides_are_reported_together(write: Write) -> None:
    found = problems(write("sed: 1\n"), "kv_cache.bits=5", "cache.chunk=0")
    assert sorted(problem.split(":")[0] for problem in found) == ["cache.chunk", "kv_cache.bits", "sed"]
