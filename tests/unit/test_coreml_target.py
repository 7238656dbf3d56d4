"""The Core ML target: what it refuses, what its cache costs, and what its audit sees in a package that lost something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import TinyModel, quantized_decoder

from exporter.decoder.cache import CacheSettings
from exporter.errors import GateFailed, PlanRefused, UsageError
from exporter.plan import check_refusals, make_plan
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, save_quantized
from exporter.recipe import load_recipe
from exporter.targets.base import find_target
from exporter.targets.coreml.decoder_audit import audit_decoder, function_problems
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.interpreter.program import Function
from exporter.targets.coreml.names import PACKAGE
from exporter.targets.coreml.profile import Profile

FLOAT = KvFormat(16, KvScaling.NONE)
REFUSED = {
    "kv_cache.bits=8": "kv_cache.bits=16",
    "weights.scale_format=bf16": "weights.scale_format=fp16",
    "kv_cache.zero_point=true": "kv_cache.zero_point=false",
    "kv_cache.rotation=true": "kv_cache.rotation=false",
}


@pytest.mark.parametrize("setting", REFUSED)
@pytest.mark.parametrize("name", ["ios", "ios-ane"])
def test_what_states_cannot_hold_is_refused_with_what_they_can(name: str, setting: str) -> None:
    spec = TinyModel(vocab_size=64).spec()
    for override, refused in ((setting, True), (REFUSED[setting], False)):
        recipe = load_recipe(name, (override, "cache.window=64"))
        target = find_target(recipe.target.kind)
        if not refused:
            check_refusals(spec, recipe, target)
            continue
        with pytest.raises(PlanRefused, match=REFUSED[setting]):
            check_refusals(spec, recipe, target)


def test_an_int4_cache_is_planned_with_its_lanes_and_scales() -> None:
    spec, bytes_per_token = TinyModel(head_dim=64).spec(), {}
    for bits in (16, 4):
        recipe = load_recipe("ios", (f"kv_cache.bits={bits}",))
        bytes_per_token[bits] = make_plan(spec, recipe, find_target(recipe.target.kind)).kv_bytes_per_token
    assert bytes_per_token == {16: 2 * 2 * 2 * 128, 4: 2 * 2 * 2 * 46}


@pytest.mark.parametrize(("name", "multiple"), [("ios", 24), ("ios-ane", 96)])
def test_slots_are_whole_chunks_and_for_the_neural_engine_whole_lines(name: str, multiple: int) -> None:
    recipe = load_recipe(name, ("cache.chunk=24",))
    assert find_target(recipe.target.kind).slot_multiple(recipe) == multiple


@pytest.fixture(scope="module")
def function(tmp_path_factory: pytest.TempPathFactory) -> Function:
    """`decode` of a tiny package."""
    pytest.importorskip("coremltools", reason="the coreml extra is not installed")
    from exporter.targets.coreml.lower import lower_in_child

    folder = tmp_path_factory.mktemp("package")
    save_quantized(decoder(), folder)
    arguments = {"quantized": str(folder), "artifact": str(folder), "profile": Profile.GPU.value}
    lower_in_child(arguments, lambda event: None)
    with pytest.raises(GateFailed, match="products with matrices"):
        audit_decoder(
            folder / PACKAGE, quantized_decoder(TinyModel((None,)), CacheSettings(96, 16), FLOAT, slot_multiple=16)
        )
    return Package.open(folder / PACKAGE).program.functions["decode"]


def decoder() -> QuantizedDecoder:
    return quantized_decoder(TinyModel(), CacheSettings(96, 16), FLOAT, slot_multiple=16)


def without(function: Function, operator: str) -> Function:
    """The function less the first operation of a kind."""
    first = next(item for item in function.operations if item.operator == operator)
    return replace(function, operations=tuple(item for item in function.operations if item is not first))


def test_the_audit_finds_nothing_in_what_was_saved(function: Function) -> None:
    assert function_problems(function, decoder()) == []


@pytest.mark.parametrize(
    ("operator", "problem"), [("write_state", "does not write once to layers_0_keys"), ("linear", "14 products")]
)
def test_the_audit_names_what_is_missing(function: Function, operator: str, problem: str) -> None:
    found = function_problems(without(function, operator), decoder())
    assert any(problem in item for item in found), found


def test_the_audit_sees_a_read_that_a_converter_merged(function: Function) -> None:
    """The read after a write replaced by the read before it."""
    reads = [item for item in function.operations if item.operator == "read_state"]
    before, after = (item.name for item in reads[:2])
    operations = [
        replace(
            item,
            inputs={
                name: tuple(before if argument == after else argument for argument in arguments)
                for name, arguments in item.inputs.items()
            },
        )
        for item in function.operations
        if item is not reads[1]
    ]
    found = function_problems(replace(function, operations=tuple(operations)), decoder())
    assert any("as it was before the write" in item for item in found), found


def test_a_matrix_that_is_not_compressed_is_named(function: Function) -> None:
    operations = tuple(
        replace(item, operator="const") if item.operator.startswith("constexpr_") else item
        for item in function.operations
    )
    found = function_problems(replace(function, operations=operations), decoder())
    assert any("compresses 0 constants" in item for item in found), found


def test_a_damaged_package_does_not_pass(tmp_path: Path) -> None:
    (tmp_path / PACKAGE).mkdir()
    with pytest.raises(UsageError, match=r"Manifest\.json"):
        audit_decoder(tmp_path / PACKAGE, decoder())
