"""Junk in place of a recipe or an override ends in an error of ours, never in another."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.errors import ExitCode, UsageError
from exporter.recipe import Recipe, load_recipe


def known_keys() -> list[str]:
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    inner = [key for kind in sections.values() if hasattr(kind, "model_fields") for key in kind.model_fields]
    return [*sections, *inner, "extends"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.dates()
KEYS = st.sampled_from(known_keys()) | TEXT | st.integers() | st.none() | st.booleans()
JUNK = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
RECIPES = st.dictionaries(KEYS, JUNK, max_size=6) | JUNK
QUICK = settings(max_examples=150, deadline=None, database=None, derandomize=True)


@pytest.fixture(scope="module")
def junk_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("junk") / "junk.yaml"


def loads_or_raises_ours(path: Path, overrides: tuple[str, ...] = ()) -> None:
    """Any exception but RecipeError and UsageError fails the test."""
    outcome: Recipe | UsageError
    try:
        outcome = load_recipe(str(path), overrides)
    except UsageError as fault:  # RecipeError is one
        outcome = fault
    assert isinstance(outcome, Recipe) or (str(outcome) and outcome.exit_code == ExitCode.USAGE)


@QUICK
@given(values=RECIPES)
def test_nested_junk_raises_no_other_error(junk_file: Path, values: object) -> None:
    junk_file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    loads_or_raises_ours(junk_file)


@QUICK
@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("a1:-[]{}&*!|>'\"%@,#?=<. \n\t"))
def test_junk_text_raises_no_other_error(junk_file: Path, text: str) -> None:
    junk_file.write_text(text, encoding="utf-8")
    loads_or_raises_ours(junk_file)


@QUICK
@given(content=st.binary(max_size=40))
def test_junk_bytes_raise_no_other_error(junk_file: Path, content: bytes) -> None:
    junk_file.write_bytes(content)
    loads_or_raises_ours(junk_file)


@QUICK
@given(
    name=st.lists(st.sampled_from(known_keys()) | TEXT, max_size=4).map(".".join),
    value=TEXT | JUNK.map(lambda junk: yaml.safe_dump(junk, default_flow_style=True)),
)
def test_junk_overrides_raise_no_other_error(junk_file: Path, name: str, value: str) -> None:
    junk_file.write_text("", encoding="utf-8")
    loads_or_raises_ours(junk_file, (f"{name}={value}", name))
