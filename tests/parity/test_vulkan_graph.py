"""The graph that is lowered for Vulkan against the oracle, and what the written program holds. Nothing here runs a Vulkan program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from driven import scored
from executorch.backends.vulkan.serialization.vulkan_graph_schema import OperatorCall

from exporter.child import run_child
from exporter.decoder.cache import CacheSettings
from exporter.decoder.spec import Activation, RotaryScaling, RotaryScalingKind
from exporter.errors import GateFailed
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat, WeightFormat
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, save_quantized
from exporter.targets.base import VERIFICATION_FOLDER
from exporter.targets.executorch.chunks import ChunkedDriver
from exporter.targets.executorch.host import HostLayout
from exporter.targets.executorch.vulkan.driver import GraphCall
from exporter.targets.executorch.vulkan.lower import LINEAR, audit_products
from exporter.targets.executorch.vulkan.program import ProgramFigures, audit_reads
from exporter.targets.executorch.vulkan.trace import traced_method
from exporter.verify.parity import compare_logits, window_logits
from tests.unit.helpers import TinyModel, quantized_decoder, random_tokens

CONTEXT = 96
MODEL = TinyModel(hidden_size=64, inner_size=96, head_dim=16, rotated=16, vocab_size=64)
FULL, SINKS = CacheSettings(CONTEXT, 16), CacheSettings(CONTEXT, 16, window=9, sinks=3)
GROUPS = WeightFormat(4, 32, ScaleFormat.FP16)

MODELS = {
    "all-before": replace(MODEL, windows=(None, None)),
    "own-windows": MODEL,
    "biases-and-norms": replace(MODEL, bias=True, query_key_norm=True),
    "untied": replace(MODEL, tied=False),
    "partial-rotary": replace(MODEL, rotated=4),
    "gelu": replace(MODEL, activation=Activation.GELU_TANH),
    "yarn": replace(MODEL, scaling=RotaryScaling(RotaryScalingKind.YARN, 4.0, 64)),
}


def decoder_of(model: TinyModel, cache: CacheSettings, bits: int = 32) -> QuantizedDecoder:
    return quantized_decoder(model, cache, KvFormat(bits, KvScaling.NONE), GROUPS, CONTEXT)


def require_equal(decoder: QuantizedDecoder, largest_error: float) -> None:
    """Chunks of every length, and single tokens, twice: the second conversation starts over what the first one left."""
    layout = HostLayout(decoder.context, decoder.chunk, decoder.spec.vocab_size, 0, False)
    driver = ChunkedDriver(GraphCall(traced_method(decoder)), layout, 0, "graph")
    token_ids = random_tokens(decoder.spec, 90, seed=5)
    expected = window_logits(decoder.oracle(), decoder.spec, token_ids, decoder.chunk)
    for prefilled in (70, 0):
        figures = compare_logits(expected, scored(driver, token_ids, prefilled))
        assert figures.max_abs_error < largest_error
        assert figures.top1_agreement == 1


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_graph_equals_the_oracle(model: TinyModel) -> None:
    require_equal(decoder_of(model, FULL), 2e-3)


def test_an_exact_gelu_becomes_the_approximation_that_the_delegate_computes() -> None:
    decoder = decoder_of(replace(MODEL, activation=Activation.GELU), FULL)
    approximations = [
        node.args[1:] or node.kwargs
        for node in traced_method(decoder).graph.nodes
        if node.target is torch.ops.aten.gelu.default
    ]
    assert approximations == [{"approximate": "tanh"}] * len(decoder.layout)
    require_equal(decoder, 2e-2)


def test_an_imposed_window_with_sinks_is_a_mask() -> None:
    require_equal(decoder_of(MODEL, SINKS), 2e-3)


@pytest.mark.parametrize("change", [{"score_cap": 3.0}, {"score_scale": 0.2}, {"distance_slopes": True}], ids=str)
def test_scores_that_are_capped_scaled_or_sloped(change: dict[str, Any]) -> None:
    decoder = decoder_of(replace(MODEL, windows=(None, None)), FULL)

    def changed(attention: Any) -> Any:
        if "distance_slopes" in change:
            return replace(attention, distance_slopes=tuple(2.0**-each for each in range(1, attention.query_heads + 1)))
        return replace(attention, **change)

    layers = tuple(replace(layer, attention=changed(layer.attention)) for layer in decoder.spec.layers)
    require_equal(replace(decoder, spec=replace(decoder.spec, layers=layers)), 2e-3)


@pytest.fixture(scope="module", params=[16, 32], ids=["fp16", "float32"])
def lowered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, dict]:
    """Two layers, one of which sees everything, so that both kinds of attention are in the program."""
    folder = tmp_path_factory.mktemp("vulkan")
    (folder / VERIFICATION_FOLDER).mkdir()
    decoder = decoder_of(replace(MODEL, windows=(None, 9)), FULL, request.param)
    save_quantized(decoder, folder / VERIFICATION_FOLDER)
    return request.param, folder, lower(folder)


def lower(folder: Path) -> dict[str, Any]:
    """In a process of its own, as an export does: another seed of hashes each time."""
    arguments = {"quantized": str(folder / VERIFICATION_FOLDER), "artifact": str(folder)}
    function = "exporter.targets.executorch.vulkan.lower:lower_in_child"
    return run_child(function, arguments, folder / "lower.log", 600.0)


@pytest.mark.slow
def test_one_delegate_takes_every_operator_and_the_caches_have_the_bytes_of_the_plan(
    lowered: tuple[int, Path, dict],
) -> None:
    bits, _, outcome = lowered
    assert outcome["delegation"]["fraction"] == 1.0
    assert outcome["delegation"]["delegates_per_method"] == {"forward": 1}
    assert outcome["delegation"]["operators_outside"] == []
    attention = MODEL.spec().layers[0].attention
    assert outcome["kv_bytes_total"] == 2 * CONTEXT * 2 * attention.kv_heads * attention.head_dim * bits // 8
    assert outcome["slots_per_layer"] == [CONTEXT, CONTEXT]
    inside = outcome["notes"]["operators_inside"]
    assert (inside["sdpa_with_kv_cache.default"], inside["update_cache.default"]) == (1, 2)


@pytest.mark.slow
def test_equal_checkpoints_give_equal_files(lowered: tuple[int, Path, dict]) -> None:
    bits, folder, _ = lowered
    if bits == 32:
        pytest.skip("once is enough")
    first = (folder / "model.pte").read_bytes()
    lower(folder)
    assert (folder / "model.pte").read_bytes() == first


def test_a_cache_that_is_read_before_it_is_written_or_as_a_copy_fails_the_export() -> None:
    value, cache, start, nothing, copy, out = range(6)
    write = OperatorCall(0, "update_cache.default", [value, cache, start, nothing])
    pack = OperatorCall(1, "et_vk.prepack.default", [copy, cache])

    def read(which: int) -> OperatorCall:
        return OperatorCall(2, "aten.permute_copy.default", [which, start, out])

    audit_reads([pack, write, read(cache)])
    for chain in ([pack, read(cache), write], [pack, write, read(copy)], [read(cache), write, read(cache)]):
        with pytest.raises(GateFailed, match="a cache is not read after it is written"):
            audit_reads(chain)


@pytest.mark.parametrize("change", [{LINEAR: 1}, {"aten.mm.default": 1}, {"et_vk.embedding_q4gsw.default": 0}], ids=str)
def test_a_product_that_is_not_of_int4_groups_fails_the_export(change: dict[str, int]) -> None:
    inside = {LINEAR: 9, "et_vk.embedding_q4gsw.default": 1}
    audit_products(MODEL.spec(), ProgramFigures(1, inside, {}, ()))
    with pytest.raises(GateFailed, match="INT4 groups"):
        audit_products(MODEL.spec(), ProgramFigures(1, inside | change, {}, ()))
