"""The error hierarchy: the exit code of every class, and messages of one line."""

from __future__ import annotations

import inspect

import pytest

from exporter import errors
from exporter.errors import ExitCode, RecipeError, SlmExportError, UsageError

EXIT_CODES = {
    "SlmExportError": 1,
    "ChildFailed": 1,
    "UsageError": 2,
    "RecipeError": 2,
    "CheckpointError": 2,
    "PlanRefused": 3,
    "OperatorsLacking": 3,
    "GateFailed": 4,
    "BudgetExceeded": 5,
    "ToolchainMissing": 6,
}
"""As the design fixes them: CI jobs branch on these numbers."""


def error_classes() -> dict[str, type[SlmExportError]]:
    found = inspect.getmembers(errors, inspect.isclass)
    return {name: kind for name, kind in found if issubclass(kind, SlmExportError)}


def test_every_error_class_has_the_exit_code_of_the_design() -> None:
    assert {name: int(kind.exit_code) for name, kind in error_classes().items()} == EXIT_CODES


def test_exit_codes_are_those_of_the_design() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "SUCCESS": 0,
        "INTERNAL": 1,
        "USAGE": 2,
        "REFUSED": 3,
        "GATE_FAILED": 4,
        "BUDGET_EXCEEDED": 5,
        "TOOLCHAIN_MISSING": 6,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize("name", sorted(set(EXIT_CODES) - {"RecipeError"}))
def test_the_text_of_an_error_is_message_and_next_step(name: str) -> None:
    fault = error_classes()[name]("file.json: broken", "copy it again")
    assert (fault.message, fault.next_step) == ("file.json: broken", "copy it again")
    assert str(fault) == "file.json: broken; copy it again"


def test_without_a_next_step_the_text_is_the_message_alone() -> None:
    assert str(UsageError("broken")) == "broken"


def test_a_recipe_error_with_one_problem_fits_on_one_line() -> None:
    fault = RecipeError("my.yaml", ["seed: must be a number"], "see: slm-export recipes show my")
    assert str(fault) == "my.yaml: seed: must be a number; see: slm-export recipes show my"


def test_a_recipe_error_lists_every_problem() -> None:
    fault = RecipeError("my.yaml", ["first", "second", "third"], "correct them")
    assert fault.problems == ["first", "second", "third"]
    assert str(fault) == "my.yaml:\n  - first\n  - second\n  - third; correct them"
