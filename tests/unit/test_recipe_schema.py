"""The schema of recipes is strict: every unknown key and wrong value is one problem, all reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_files import Write, problems

from exporter.errors import RecipeError
from exporter.quantize.formats import RoundingMethod, ScaleFormat
from exporter.recipe import KvCacheSection, Recipe, load_recipe


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
