"""Facts that the documentation states a second time are those of the program."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from doc_pages import REPOSITORY, blocks

from exporter.errors import ExitCode
from exporter.recipe import load_recipe


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The script that writes the generated pages."""
    specification = importlib.util.spec_from_file_location(
        "generate_reference", REPOSITORY / "docs/generate_reference.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(generator: ModuleType) -> None:
    assert generator.stale_pages() == [], f"run: {generator.COMMAND}"


def test_the_check_notices_a_page_that_is_missing_or_changed(generator: ModuleType, tmp_path: Path) -> None:
    generator.REFERENCE = tmp_path / "reference"
    assert generator.main([]) == 0
    assert generator.stale_pages(generator.REFERENCE) == []
    page = generator.REFERENCE / "recipe.md"
    page.write_text(page.read_text(encoding="utf-8").replace("group_size", "groupsize"), encoding="utf-8")
    assert generator.stale_pages(generator.REFERENCE) == ["recipe.md"]


@pytest.mark.parametrize("name", ["README.md", "docs/reference/exit-codes.md"])
def test_exit_codes_are_those_of_the_program(name: str) -> None:
    rows = re.findall(r"^\| (\d+) \|", (REPOSITORY / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(row) for row in rows] == [code.value for code in ExitCode]


def test_names_of_exit_codes_are_those_of_the_program() -> None:
    text = (REPOSITORY / "docs/reference/exit-codes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", text, re.MULTILINE)
    assert rows == [(str(code.value), code.name) for code in ExitCode]


def test_recipes_in_the_guide_are_valid(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/guides/write-a-recipe.md").read_text(encoding="utf-8")
    recipes = [content for language, content in blocks(text) if language == "yaml" and yaml.safe_load(content)]
    assert recipes
    for content in recipes:
        path = tmp_path / "chat.yaml"
        path.write_text(content, encoding="utf-8")
        assert load_recipe(str(path)).name == "chat"


def test_the_family_of_the_guide_defines_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    from exporter.checkpoint import family
    from exporter.checkpoint.config import Config
    from exporter.registry import Registry

    families: Registry[family.Family] = Registry("model_type")
    monkeypatch.setattr(family, "FAMILIES", families)
    text = (REPOSITORY / "docs/guides/add-a-family.md").read_text(encoding="utf-8")
    (content,) = [content for language, content in blocks(text) if language == "python"]
    exec(compile(content, "add-a-family.md", "exec"), {})
    (name,) = families.names()
    config = Config.read(REPOSITORY / "examples/model/config.json")
    assert families.get(name).decoder_spec(config).family == name


def test_the_readme_lists_every_family() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    families = {path.stem for path in (REPOSITORY / "exporter/checkpoint/families").glob("[a-z]*.py")}
    assert [name for name in sorted(families) if f"`{name}`" not in readme] == []


def test_the_readme_fits_in_120_lines() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) < 120
