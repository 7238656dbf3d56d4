"""Output for machines: JSON, YAML and lists that hold what the program knows, and nothing else on the stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command_line import Run, plan_arguments

from exporter.recipe import Recipe, load_recipe, recipe_json_schema, recipe_names


def test_the_plan_as_json_holds_the_figures_of_the_plan(run: Run) -> None:
    outcome = run(*plan_arguments("--json"))
    values = json.loads(outcome.out)
    assert outcome.code == 0
    assert values["family"] == "qwen3"
    assert values["obtained"] == "estimated"
    assert f"{values['parameters']:,} parameters" in run(*plan_arguments()).out


def test_a_recipe_as_json_is_the_recipe(run: Run) -> None:
    outcome = run("recipes", "show", "android-npu", "--json", "--set", "seed=3")
    assert Recipe.model_validate(json.loads(outcome.out)) == load_recipe("android-npu", ("seed=3",))


def test_a_recipe_as_yaml_loads_as_the_same_recipe(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    path.write_text(run("recipes", "show", "android-npu").out, encoding="utf-8")
    assert load_recipe(str(path)) == load_recipe("android-npu")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"] == "android-npu"


def test_the_schema_command_prints_the_schema(run: Run) -> None:
    assert json.loads(run("recipes", "schema").out) == recipe_json_schema()


def test_the_list_has_every_recipe_with_its_description(run: Run) -> None:
    lines = run("recipes").out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(load_recipe(line.split()[0]).description in line for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        plan_arguments("--json", "--set", "kv_cache.bits=16"),
        ["--json", "--recipe", "android-npu", "--model", "no-such-model"],
        ["verify", "no-such-export", "--json"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_error_leaves_standard_output_empty_for_machines(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments)
    assert outcome.code in (2, 3)
    assert outcome.out == ""
