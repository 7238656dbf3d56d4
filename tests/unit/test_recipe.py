"""Recipes: strict schema, inheritance, overrides, shipped recipes, and junk that must end in an error of ours."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.cli import app
from exporter.errors import ExitCode, RecipeError, UsageError
from exporter.quantize.formats import RoundingMethod, ScaleFormat
from exporter.recipe import KvCacheSection, Recipe, load_recipe, recipe_json_schema, recipe_names, recipe_path
from exporter.resources import recipe_folder

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes `<name>.yaml` and returns its path as text."""

    def write_recipe(text: str, name: str = "mine") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_recipe


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


# Schema


def test_an_empty_file_is_a_recipe_of_defaults_named_after_the_file(write: Write) -> None:
    assert load_recipe(write("")) == Recipe(name="mine")
    assert load_recipe(write("# nothing but a comment\n")) == Recipe(name="mine")


def test_values_are_read_with_their_types(write: Write) -> None:
    recipe = load_recipe(write("weights: {method: rtn, scale_format: bf16, group_size: 64}\ncache: {window: 128}\n"))
    assert recipe.weights.method is RoundingMethod.RTN
    assert recipe.weights.scale_format is ScaleFormat.BF16
    assert (recipe.weights.group_size, recipe.cache.window) == (64, 128)


def test_a_recipe_cannot_be_changed() -> None:
    recipe = Recipe(name="mine")
    with pytest.raises(ValueError, match="frozen"):
        recipe.cache.context = 2  # type: ignore[misc]


def test_an_unknown_section_gets_the_nearest(write: Write) -> None:
    (problem,) = problems(write("kv_cach: {bits: 8}\n"))
    assert problem.startswith("kv_cach: unknown key; did you mean 'kv_cache'? available: ")


def test_an_unknown_key_of_a_section_gets_the_nearest_of_that_section(write: Write) -> None:
    (problem,) = problems(write("weights: {group_sise: 32}\n"))
    assert problem.startswith("weights.group_sise: unknown key; did you mean 'group_size'? available: ")
    assert "damping" in problem
    assert "kv_cache" not in problem


def test_an_unknown_key_that_resembles_nothing_lists_what_is_known(write: Write) -> None:
    (problem,) = problems(write("kv_cache: {qqq: 1}\n"))
    assert problem == f"kv_cache.qqq: unknown key; available: {', '.join(sorted(KvCacheSection.model_fields))}"


def test_all_faults_are_reported_at_once(write: Write) -> None:
    text = """
    schema_version: 2
    sed: 1
    weights: {group_size: 48, method: magic, damping: 0}
    cache: {context: many, chunk: 0, wibndow: 3}
    gates: {top1_agreement_min: 1.5}
    """
    found = problems(write(text))
    assert sorted(problem.split(":")[0] for problem in found) == [
        "cache.chunk",
        "cache.context",
        "cache.wibndow",
        "gates.top1_agreement_min",
        "schema_version",
        "sed",
        "weights.damping",
        "weights.group_size",
        "weights.method",
    ]


def test_the_message_of_several_faults_holds_each_of_them(write: Write) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write("sed: 1\ncach: {}\n"))
    assert len(caught.value.problems) == 2
    assert all(problem in str(caught.value) for problem in caught.value.problems)


def test_a_wrong_value_is_quoted(write: Write) -> None:
    (problem,) = problems(write("cache: {context: many}\n"))
    assert problem.startswith("cache.context: ")
    assert problem.endswith("not 'many'")


@pytest.mark.parametrize(
    "text",
    [
        "target: 3",
        "target:",
        "kv_cache: {bits: 5}",
        "kv_cache: {bits: '8'}",
        "kv_cache: {rotation: maybe}",
        "cache: {context: 1}",
        "cache: {context: 10.5}",
        "cache: {chunk: 1025}",
        "cache: {window: 0}",
        "cache: {sinks: -1}",
        "weights: {group_size: 0}",
        "weights: {damping: 1}",
        "calibration: {tokens: 63}",
        "gates: {mean_kl_max: 0}",
        "gates: {mean_kl_max: .nan}",
        "gates: {top1_agreement_min: .nan}",
        "device: {memory_bandwidth_gb_s: -1}",
        "name: [a]",
        "seed: abc",
        "1: 2",
        "target: {1: 2}",
    ],
)
def test_a_value_outside_the_schema_is_one_problem(write: Write, text: str) -> None:
    assert len(problems(write(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "gates: {mean_kl_max: .inf}",
        "gates: {perplexity_artifact_percent_max: .inf}",
        "gates: {perplexity_quantized_percent_max: .inf}",
        "device: {memory_bandwidth_gb_s: .inf}",
    ],
)
def test_infinity_is_no_limit_null_is(write: Write, text: str) -> None:
    assert len(problems(write(text))) == 1


def test_a_gate_can_be_switched_off(write: Write) -> None:
    assert load_recipe(write("gates: {mean_kl_max: null}")).gates.mean_kl_max is None


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "3", "[]", "false", "0", "''"])
def test_a_file_that_is_no_mapping_is_refused(write: Write, text: str) -> None:
    (problem,) = problems(write(text))
    assert "mapping" in problem


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: b: c",
        "\tseed: 1",
        "seed: 'open",
        "? [1, 2]\n: 3",
        "a: *nothing",
        "name: !!python/object:os.system x",
        "name: \x00",
        "name: 2001-99-99",
        "seed: !!int abc",
        "seed: !!float abc",
        "seed: 0b_",
        "seed: 0x_",
        "name: !!timestamp abc",
        "seed: !!int ''",
        "seed: !!bool abc",
    ],
)
def test_a_file_that_is_no_yaml_is_one_problem(write: Write, text: str) -> None:
    assert len(problems(write(text))) == 1


def test_a_file_nested_too_deeply_is_refused(write: Write) -> None:
    assert len(problems(write("name: " + "[" * 1200))) == 1


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    assert len(problems(str(path))) == 1


# Finding recipes


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


# Inheritance


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


# Overrides


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


# Shipped recipes


def shipped() -> list[Path]:
    return sorted(recipe_folder().glob("*.yaml"))


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
    assert context.params["recipe"] == path.stem


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
        load_recipe(context.params["recipe"], tuple(context.params["overrides"] or ()))


# JSON Schema


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


# Junk


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
