"""States of recurrent layers in a Core ML package: declared as planned, untouched by padding, carried on from any token, and as precise as
what is summed up in them must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("coremltools", reason="the coreml extra is not installed")

from all_cases import CASES
from coreml_package import EXACT_LIMIT, lower_coreml
from driven import scored
from quantized_case import CHUNK, quantized_case
from random_checkpoint import CONTEXT

from exporter.decoder.cache import CacheSettings, cache_layout
from exporter.decoder.forward import decode_chunk
from exporter.decoder.recurrence import SCAN
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized, save_quantized
from exporter.recipe import load_recipe
from exporter.targets.base import find_target
from exporter.targets.coreml import driver as driver_module
from exporter.targets.coreml.audit import blobs
from exporter.targets.coreml.driver import CoreMlDriver, open_driver, open_exact_driver
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.interpreter.types import ElementType
from exporter.targets.coreml.lower import lower_in_child
from exporter.targets.coreml.names import PACKAGE
from exporter.targets.coreml.profile import Profile
from exporter.targets.coreml.recurrent_state import FINE_SCALE, stored_order
from exporter.verify.parity import window_logits
from exporter.verify.same_codes import compare_in_child
from tests.unit.helpers import random_tokens

FLOAT = KvFormat(16, KvScaling.NONE)
CODED = KvFormat(4, KvScaling.PER_TOKEN, half_lanes=True)
OTHER_FAMILIES = ("lfm2", "mamba2", "bamba", "jamba-dense", "granitemoehybrid", "falcon_h1", "zamba2")
ALMOST_ALL = CONTEXT - 5
"""A window whose ring has a slot for every position of the context and no more."""


@torch.no_grad()
def packaged(
    family: str, folder: Path, kv_format: KvFormat = FLOAT, window: int | None = None, profile: Profile = Profile.GPU
) -> QuantizedDecoder:
    decoder = quantized_case(CASES[family], folder, kv_format, ScaleFormat.FP16)
    layout = cache_layout(decoder.spec, CacheSettings(CONTEXT, CHUNK, window))
    return lower_coreml(replace(decoder, layout=layout), profile, folder)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedDecoder, Path]:
    """Attention in a ring beside Mamba 2 in every layer."""
    folder = tmp_path_factory.mktemp("hybrid")
    return packaged("falcon_h1", folder, window=20), folder


@torch.no_grad()
def require_equal_in_pieces(decoder: QuantizedDecoder, driver: CoreMlDriver) -> None:
    """Pieces that are shorter than a chunk, longer, and single tokens, up to the end of the context."""
    token_ids = random_tokens(decoder.spec, CONTEXT, seed=7)
    exact = window_logits(decoder.exact_oracle(), decoder.spec, token_ids, decoder.chunk)
    found, done, lengths = [], 0, (5, CHUNK, 1, 1, 2 * CHUNK + 3, 2, CHUNK - 1, 9)
    while done < len(token_ids):
        for length in lengths:
            piece = token_ids[done : done + length]
            if piece:
                found.append(driver.decode(piece[0])[None] if len(piece) == 1 else driver.prefill(piece))
            done += length
    error = np.abs(np.concatenate(found) - exact.numpy()).max()
    assert error < EXACT_LIMIT * max(1.0, float(exact.abs().max()) / 10)


def test_a_chunk_starts_anywhere_in_a_ring(hybrid: tuple[QuantizedDecoder, Path]) -> None:
    decoder, folder = hybrid
    require_equal_in_pieces(decoder, open_exact_driver(folder))


@pytest.mark.slow
@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("window", [None, 20, ALMOST_ALL])
def test_a_chunk_starts_anywhere_beside_convolutions(window: int | None, profile: Profile, tmp_path: Path) -> None:
    require_equal_in_pieces(packaged("lfm2", tmp_path, FLOAT, window, profile), open_exact_driver(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mamba", "falcon_h1", "zamba2"])
def test_a_chunk_starts_anywhere_in_a_cache_of_the_context(family: str, tmp_path: Path) -> None:
    require_equal_in_pieces(packaged(family, tmp_path, window=ALMOST_ALL), open_exact_driver(tmp_path))


def held_after(driver: CoreMlDriver, token_ids: list[int]) -> dict[str, np.ndarray]:
    driver.reset()
    driver.prefill(token_ids)
    return {name: state.copy() for name, state in driver._state.items() if name.endswith(("convolution", "scan"))}


def test_padding_does_not_reach_the_states(
    hybrid: tuple[QuantizedDecoder, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, folder = hybrid
    driver, token_ids = open_driver(folder), random_tokens(decoder.spec, CHUNK + 7, seed=2)
    held = held_after(driver, token_ids)
    assert held and all(np.abs(state).max() > 0 for state in held.values())
    monkeypatch.setattr(driver_module, "PADDING", 55)
    for name, state in held_after(driver, token_ids).items():
        np.testing.assert_array_equal(state, held[name])


def test_a_conversation_that_begins_knows_nothing_of_the_states(hybrid: tuple[QuantizedDecoder, Path]) -> None:
    """Not even in a state that another conversation left, as in ExecuTorch's runtime, which makes one state per method."""
    decoder, folder = hybrid
    driver, token_ids = open_driver(folder), random_tokens(decoder.spec, 40, seed=2)
    for prefilled in (0, 23):
        fresh = scored(driver, token_ids, prefilled)
        driver._tokens = []
        logits = [driver.prefill(token_ids[:prefilled])] if prefilled else []
        logits += [driver.decode(token_id)[None] for token_id in token_ids[prefilled:]]
        np.testing.assert_array_equal(np.concatenate(logits), fresh)


@torch.no_grad()
def test_sums_are_held_more_precisely_than_in_fp16(tmp_path: Path) -> None:
    """A token adds to a state that is far larger and hardly fades: in fp16 alone the state would err by 2e-4."""
    decoder = quantized_case(CASES["mamba2"], tmp_path, FLOAT, ScaleFormat.FP16)
    for index in range(len(decoder.spec.layers)):
        decoder.weights.vectors[f"layers.{index}.recurrence.decay"].fill_(-9.0)
    decoder = lower_coreml(decoder, Profile.GPU, tmp_path)
    oracle, driver, token_ids = decoder.oracle(), open_driver(tmp_path), random_tokens(decoder.spec, 21, seed=4)
    decode_chunk(oracle, decoder.spec, torch.tensor(token_ids[:20]))
    for (_, name), state in oracle.states.items():
        if name == SCAN:
            state *= 20
    driver.adopt(token_ids[:20], oracle.stored_cache())
    driver.decode(token_ids[20])
    decode_chunk(oracle, decoder.spec, torch.tensor(token_ids[20:]))
    sums = stored_order(oracle.states[0, SCAN][0].numpy())
    held, coarse = sums_of(driver, 0), driver._state["layers_0_scan"]
    scale = np.abs(sums).max()
    assert np.abs(held - sums).max() < 1e-5 * scale < 1e-4 * scale < np.abs(coarse - sums).max()


def sums_of(driver: CoreMlDriver, layer: int) -> np.ndarray:
    name = f"layers_{layer}_scan"
    return driver._state[name] + driver._state[f"{name}_fine"] / FINE_SCALE


@torch.no_grad()
@pytest.mark.parametrize("family", ["mamba", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_FAMILIES)])
def test_the_package_declares_the_planned_states(family: str, tmp_path: Path) -> None:
    decoder = quantized_case(CASES[family], tmp_path, FLOAT, ScaleFormat.FP16)
    save_quantized(decoder, tmp_path)
    assert load_quantized(tmp_path).spec == decoder.spec
    arguments = {"quantized": str(tmp_path), "artifact": str(tmp_path), "profile": Profile.GPU.value}
    outcome = lower_in_child(arguments, lambda event: None)
    target, layers = find_target(load_recipe("ios").target.kind), decoder.spec.layers
    planned = sum(target.state_bytes(state) for layer in layers for state in layer.states)
    assert outcome["state_bytes_total"] == planned > 0
    assert [slots > 0 for slots in outcome["slots_per_layer"]] == [layer.attention is not None for layer in layers]
    driver = open_driver(tmp_path)
    assert driver.kv_bytes() == outcome["kv_bytes_total"]
    assert driver.kv_bytes() + planned == sum(2 * state.size for state in driver._state.values())
    require_no_larger_constants(decoder, tmp_path / PACKAGE)


def require_no_larger_constants(decoder: QuantizedDecoder, package: Path) -> None:
    """What is not a matrix is a vector of the decoder, a comparison of a chunk's tokens, or a table of angles: a constant of a chunk's
    states would be stored for every layer."""
    vectors = (vector.numel() for vector in decoder.weights.vectors.values())
    angles = (CONTEXT + CHUNK) * max((attention.head_dim for attention in decoder.spec.attentions), default=0)
    found = [blob.bytes for blob in blobs(Package.open(package)) if blob.dtype is ElementType.FP32]
    assert 0 < max(found) <= 4 * max(*vectors, CHUNK**2, angles)


@pytest.mark.slow
def test_an_int4_cache_is_judged_with_the_oracles_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = packaged("falcon_h1", tmp_path, CODED)
    arguments = {
        "driver": "exporter.targets.coreml.driver:open_driver",
        "folder": str(tmp_path),
        "quantized": str(tmp_path),
        "window": random_tokens(decoder.spec, CONTEXT, seed=11),
    }

    def mean_kl() -> float:
        return float(compare_in_child(arguments, lambda event: None)["mean_kl"])

    assert mean_kl() < 1e-4
    adopt: Callable[..., None] = driver_module.adopt_states

    def forget(held: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> None:
        adopt(held, {name: np.zeros_like(numbers) for name, numbers in given.items()})

    monkeypatch.setattr(driver_module, "adopt_states", forget)
    assert mean_kl() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("family", ["lfm2", pytest.param("mamba", marks=pytest.mark.slow)])
def test_a_program_for_executorch_goes_on_by_chunks_that_begin_with_what_is_new(family: str, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="the executorch extra is not installed")
    from exporter.targets.executorch.coreml.driver import open_exact_driver as open_program
    from exporter.targets.executorch.coreml.lower import lower_in_child as lower_program

    decoder = quantized_case(CASES[family], tmp_path, FLOAT, ScaleFormat.FP16)
    save_quantized(decoder, tmp_path)
    lower_program({"quantized": str(tmp_path), "artifact": str(tmp_path), "profile": "gpu"}, lambda event: None)
    require_equal_in_pieces(decoder, open_program(tmp_path))
