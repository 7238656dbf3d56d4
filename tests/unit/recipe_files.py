"""Recipe files: how tests write them, which ones are shipped, and the errors of those that cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.errors import ExitCode, RecipeError, UsageError
from exporter.recipe import load_recipe
from exporter.resources import recipe_folder

Write = Callable[..., str]


def problems(source: str, *overrides: str) -> list[str]:
    """The problems of a recipe, after checking that its error has exit code 2, its source and a next step."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, overrides)
    assert caught.value.exit_code == ExitCode.USAGE
    assert source in caught.value.message
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def usage_error(source: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_recipe(source, overrides)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.next_step
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shipped() -> list[Path]:
    return sorted(recipe_folder().glob("*.yaml"))
