"""Trained models compute the fp32 logits of transformers while their windowed layers wrap the ring."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_checkpoint import STEPS, TOLERANCE, largest_error
from reference_pair import Pair, open_pair
from spec_faults import Fault, attention, layers

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.decoder.cache import CacheSettings, cache_layout

TRAINED_CHUNK, TRAINED_PREFILL = 32, 256
NO_ROTARY = attention(rotary=None)
WITHOUT_WINDOWS = layers(
    lambda _, layer: dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=None))
)
TRAINED: dict[str, Fault] = {
    "example": WITHOUT_WINDOWS,
    "qwen3-swa-5m-tinystories": WITHOUT_WINDOWS,
    "stories260K": NO_ROTARY,
    "qwen3moe-16m-tinystories": NO_ROTARY,
}


@pytest.fixture(scope="module")
def open_trained(example_model: Path) -> Callable[[Path], Pair]:
    """Opens a trained model with a text that it was not trained on, each only once."""
    text = (example_model.parent / "evaluation.txt").read_text(encoding="utf-8")
    chunks = (TRAINED_CHUNK,) * (TRAINED_PREFILL // TRAINED_CHUNK)

    @functools.cache
    def open_folder(folder: Path) -> Pair:
        (window,) = open_checkpoint(folder).text_codec().windows(text, TRAINED_PREFILL + STEPS, limit=1)
        return open_pair(folder, torch.tensor(window), chunks, context=512)

    return open_folder


@pytest.fixture
def trained(request: pytest.FixtureRequest, example_model: Path, open_trained: Callable[[Path], Pair]) -> Pair:
    if request.param == "example":
        return open_trained(example_model)
    return open_trained(request.getfixturevalue("shared_models") / request.param)


@pytest.mark.parametrize("trained", TRAINED, indirect=True)
def test_trained_model_equals_transformers_through_the_ring(trained: Pair) -> None:
    ours = trained.logits()
    assert largest_error(ours[:TRAINED_PREFILL], trained.one_pass[:TRAINED_PREFILL]) < TOLERANCE
    assert largest_error(ours[TRAINED_PREFILL:], trained.cached[TRAINED_PREFILL:]) < TOLERANCE


@pytest.mark.parametrize(("trained", "fault"), [*TRAINED.items()], indirect=["trained"], ids=list(TRAINED))
def test_wrong_spec_breaks_the_trained_model(trained: Pair, fault: Fault) -> None:
    trained.assert_broken_by(fault)


@pytest.mark.parametrize("trained", ["example", "qwen3-swa-5m-tinystories"], indirect=True)
def test_windowed_layers_of_the_trained_model_wrap_their_ring(trained: Pair) -> None:
    layout = cache_layout(trained.checkpoint.spec, CacheSettings(trained.context, TRAINED_CHUNK))
    ring = 64 + TRAINED_CHUNK - 1
    assert [cache.slots for cache in layout] == [ring, ring, 512, ring, ring, 512]
    assert 2 * ring < len(trained.token_ids)
