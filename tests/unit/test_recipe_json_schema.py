"""The JSON Schema of recipes accepts and rejects what the loader does, and describes every key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_files import Write, shipped

from exporter.errors import UsageError
from exporter.recipe import load_recipe, recipe_json_schema


@pytest.fixture(scope="module")
def validator() -> Any:
    """A validator of the recipe schema, itself checked against the meta-schema."""
    jsonschema = pytest.importorskip(
        "jsonschema", reason="jsonschema is a dev dependency: pip install 'slm-export[dev]'"
    )
    jsonschema.Draft202012Validator.check_schema(recipe_json_schema())
    return jsonschema.Draft202012Validator(recipe_json_schema())


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_the_json_schema_accepts_shipped_recipes(path: Path, validator: Any) -> None:
    assert list(validator.iter_errors(yaml.safe_load(path.read_text(encoding="utf-8")))) == []
    assert list(validator.iter_errors(load_recipe(path.stem).model_dump(mode="json"))) == []


def test_the_json_schema_accepts_a_recipe_that_extends_another(validator: Any) -> None:
    assert validator.is_valid({"extends": "android-npu", "cache": {"window": None}})


@pytest.mark.parametrize(
    "values",
    [
        {"kv_cach": {}},
        {"target": {"sock": "SM8650"}},
        {"gates": {"mean_kl": 1}},
        {"weights": {"group_size": 48}},
        {"weights": {"method": "magic"}},
        {"cache": {"chunk": 0}},
        {"cache": {"context": "many"}},
        {"schema_version": 2},
        {"extends": 3},
    ],
    ids=str,
)
def test_the_json_schema_rejects_what_the_loader_rejects(values: dict[str, Any], write: Write, validator: Any) -> None:
    assert not validator.is_valid(values)
    with pytest.raises(UsageError):
        load_recipe(write(yaml.safe_dump(values)))


def test_every_key_of_the_json_schema_is_described() -> None:
    schema = recipe_json_schema()
    sections = [schema, *schema["$defs"].values()]
    keys = [(name, value) for section in sections for name, value in section.get("properties", {}).items()]
    assert len(keys) > 30
    undescribed = [name for name, value in keys if "description" not in value and "$ref" not in value]
    assert undescribed == []
