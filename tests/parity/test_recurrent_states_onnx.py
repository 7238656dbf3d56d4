"""States of recurrent layers in an ONNX artifact: declared as planned, handed from call to call, forgotten with the conversation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx_ir", reason="the onnx extra is not installed")

from all_cases import CASES
from driven import scored
from onnx_artifact import SETTINGS, lower_onnx
from quantized_case import quantized_case
from recurrent_cases import RECURRENT_FAMILIES

from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized, save_quantized
from exporter.targets.onnx.driver import Caches, open_driver
from exporter.targets.onnx.lower import lower_in_child
from exporter.verify.parity import window_logits
from tests.unit.helpers import random_tokens

KV_FORMAT = KvFormat(8, KvScaling.PER_TOKEN)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizedDecoder, Path]:
    """Attention beside Mamba 2 in every layer."""
    folder = tmp_path_factory.mktemp("hybrid")
    with torch.no_grad():
        decoder = quantized_case(CASES["falcon_h1"], folder, KV_FORMAT, ScaleFormat.FP16)
        lower_onnx(decoder, folder)
    return decoder, folder


@torch.no_grad()
@pytest.mark.parametrize("family", RECURRENT_FAMILIES)
def test_the_artifact_declares_the_states_and_slots_of_the_spec(family: str, tmp_path: Path) -> None:
    decoder = quantized_case(CASES[family], tmp_path, KV_FORMAT, ScaleFormat.FP16)
    save_quantized(decoder, tmp_path)
    assert load_quantized(tmp_path).spec == decoder.spec
    arguments = {"quantized": str(tmp_path), "artifact": str(tmp_path), "settings": SETTINGS}
    outcome = lower_in_child(arguments, lambda event: None)
    states = [state for layer in decoder.spec.layers for state in layer.states]
    assert outcome["state_bytes_total"] == sum(state.bytes for state in states) > 0
    attending = [layer.attention is not None for layer in decoder.spec.layers]
    assert [slots > 0 for slots in outcome["slots_per_layer"]] == attending


@torch.no_grad()
def test_the_oracle_holds_the_states_of_the_spec(hybrid: tuple[QuantizedDecoder, Path]) -> None:
    decoder, _ = hybrid
    ops = decoder.oracle()
    window_logits(ops, decoder.spec, random_tokens(decoder.spec, 20, seed=1), decoder.chunk)
    for index, layer in enumerate(decoder.spec.layers):
        for state in layer.states:
            assert tuple(ops.states[index, state.name].shape) == (1, *state.shape)


def test_a_new_conversation_knows_nothing_of_the_last_one(hybrid: tuple[QuantizedDecoder, Path]) -> None:
    decoder, folder = hybrid
    driver, token_ids = open_driver(folder), random_tokens(decoder.spec, 30, seed=2)
    fresh = scored(driver, token_ids, 17)
    for length in (1, 2):  # the states of either buffer are the newer ones
        scored(driver, random_tokens(decoder.spec, length, seed=3), 0)
        np.testing.assert_array_equal(scored(driver, token_ids, 17), fresh)


def test_states_that_do_not_change_places_are_noticed(
    hybrid: tuple[QuantizedDecoder, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, folder = hybrid
    token_ids = random_tokens(decoder.spec, 30, seed=2)
    right = scored(open_driver(folder), token_ids, 17)
    monkeypatch.setattr(Caches, "swap", lambda caches: None)
    wrong = scored(open_driver(folder), token_ids, 17)
    assert float((right - wrong).abs().max()) > 1e-2


def test_one_token_at_a_time_and_whole_chunks_leave_the_same_states(hybrid: tuple[QuantizedDecoder, Path]) -> None:
    decoder, folder = hybrid
    token_ids, held = random_tokens(decoder.spec, 23, seed=4), []
    for prefilled in (0, 23):
        driver = open_driver(folder)
        scored(driver, token_ids, prefilled)
        caches = driver._caches
        held.append({name: value.numpy().copy() for name, value in caches.states[caches.turn].items()})
    for name, state in held[0].items():
        np.testing.assert_allclose(held[1][name], state, rtol=1e-3, atol=2e-3, err_msg=name)
