"""Shipped recipes load, and the commands in their comments are valid."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer
from recipe_files import shipped

from exporter.cli import app
from exporter.recipe import load_recipe, recipe_names


def test_there_are_shipped_recipes() -> None:
    assert "android-npu" in recipe_names()
    assert recipe_names() == sorted(path.stem for path in shipped())


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_under_its_own_name_with_a_description(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe.name == path.stem
    assert recipe.description
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_the_first_line_of_a_shipped_recipe_is_the_command_that_runs_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# slm-export ")
    program, *arguments = shlex.split(first.removeprefix("# "))
    context = typer.main.get_command(app).make_context(program, arguments)
    assert list(context.params["recipe"]) == [path.stem]


def commands_in_comments(path: Path) -> list[str]:
    lines = [
        line.lstrip("# ").strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    return [line for line in lines if line.startswith("slm-export ")]


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_every_command_in_the_comments_of_a_shipped_recipe_is_valid(path: Path) -> None:
    for command in commands_in_comments(path):
        program, *arguments = shlex.split(command)
        context = typer.main.get_command(app).make_context(program, arguments)
        for name in context.params["recipe"]:
            load_recipe(name, tuple(context.params["overrides"] or ()))
