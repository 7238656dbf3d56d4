"""Every family computes the fp32 logits of transformers: in one chunk, in uneven chunks, and in cached decoding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoint import (
    BREAKAGE,
    CHUNKS,
    PREFILL,
    STEPS,
    TOLERANCE,
    WINDOW,
    WeightsInMemory,
    cached_reference_logits,
    decoder_logits,
    edit_config,
    largest_error,
    load_reference,
    random_tokens,
    reference_logits,
    save_random_checkpoint,
    tiny_shape,
)
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from exporter.checkpoint.checkpoint import Checkpoint, open_checkpoint
from exporter.decoder.cache import CacheSettings, cache_layout
from exporter.decoder.spec import (
    EMBEDDING,
    HEAD,
    Activation,
    AttentionSpec,
    DecoderSpec,
    LayerSpec,
    NormSpec,
    RotaryScaling,
    RotarySpec,
    decoder_weights,
)
from exporter.errors import CheckpointError

Fault = Callable[[DecoderSpec], DecoderSpec]


def layers(change: Callable[[int, LayerSpec], LayerSpec]) -> Fault:
    def apply(spec: DecoderSpec) -> DecoderSpec:
        changed = tuple(change(index, layer) for index, layer in enumerate(spec.layers))
        assert changed != spec.layers, "the fault changes nothing"
        return dataclasses.replace(spec, layers=changed)

    return apply


def attention(**changes: Any) -> Fault:
    """Every layer's AttentionSpec with these fields changed."""
    return layers(
        lambda _, layer: dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, **changes))
    )


def windows(*values: int | None) -> Fault:
    """These windows, one per layer."""

    def change(index: int, layer: LayerSpec) -> LayerSpec:
        return dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=values[index]))

    return layers(change)


def feed_forward(**changes: Any) -> Fault:
    return layers(
        lambda _, layer: dataclasses.replace(layer, feed_forward=dataclasses.replace(layer.feed_forward, **changes))
    )


def rotary(**changes: Any) -> Fault:
    def change(spec: AttentionSpec) -> RotarySpec:
        assert spec.rotary is not None
        return dataclasses.replace(spec.rotary, **changes)

    return layers(
        lambda _, layer: dataclasses.replace(
            layer, attention=dataclasses.replace(layer.attention, rotary=change(layer.attention))
        )
    )


def scaling(**changes: Any) -> Fault:
    def apply(spec: DecoderSpec) -> DecoderSpec:
        current = spec.layers[0].attention.rotary
        assert current is not None
        assert isinstance(current.scaling, RotaryScaling)
        return rotary(scaling=dataclasses.replace(current.scaling, **changes))(spec)

    return apply


def norm_eps(eps: float) -> Fault:
    """Another epsilon in the norms around the blocks."""
    change = layers(lambda _, layer: dataclasses.replace(layer, attention_norm=NormSpec(eps)))
    return lambda spec: dataclasses.replace(change(spec), final_norm=NormSpec(eps))


@dataclass(frozen=True)
class Case:
    """A config with some switches on, edits of the saved config.json, and the faults that must show in the logits."""

    config: PreTrainedConfig
    faults: dict[str, Fault]
    removed: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0} | parameters


ORIGINAL = 32
"""Original context of the stretched rotary embeddings; the test runs far beyond it."""
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=ORIGINAL)
ALTERNATING = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
ALL_WINDOWED, NONE_WINDOWED = windows(*[WINDOW] * 4), windows(*[None] * 4)


def llama(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**tiny_shape(**changes))


def mistral(**changes: Any) -> MistralConfig:
    return MistralConfig(**tiny_shape(**changes))


def qwen2(**changes: Any) -> Qwen2Config:
    return Qwen2Config(**tiny_shape(**changes))


def qwen3(**changes: Any) -> Qwen3Config:
    return Qwen3Config(**tiny_shape(**{"head_dim": 16} | changes))


CASES = {
    "llama": Case(llama(), {"no rotary": attention(rotary=None), "window": ALL_WINDOWED}),
    "llama-one-key-value-head": Case(llama(num_key_value_heads=1), {"no rotary": attention(rotary=None)}),
    "llama-no-groups": Case(llama(num_key_value_heads=None), {"no rotary": attention(rotary=None)}),
    "llama-theta": Case(
        llama(rope_parameters=rope("default", rope_theta=500000.0)), {"usual theta": rotary(theta=10000.0)}
    ),
    "llama-theta-outside": Case(
        llama(), {"usual theta": rotary(theta=10000.0)}, ("rope_parameters",), {"rope_theta": 500000.0}
    ),
    "llama-attention-bias": Case(
        llama(attention_bias=True),
        {"no input bias": attention(query_key_value_bias=False), "no output bias": attention(output_bias=False)},
    ),
    "llama-mlp-bias": Case(llama(mlp_bias=True), {"no bias": feed_forward(bias=False)}),
    "llama-linear": Case(
        llama(rope_parameters=rope("linear", factor=4.0)),
        {"no scaling": rotary(scaling=None), "other factor": scaling(factor=2.0)},
    ),
    "llama-llama3": Case(
        llama(
            head_dim=32,
            rope_parameters=rope(
                "llama3",
                factor=4.0,
                original_max_position_embeddings=ORIGINAL,
                low_freq_factor=0.5,
                high_freq_factor=3.0,
            ),
        ),
        {
            "no scaling": rotary(scaling=None),
            "other factor": scaling(factor=2.0),
            "other original context": scaling(original_context=128),
            "usual low band": scaling(low_frequency_factor=1.0),
            "usual high band": scaling(high_frequency_factor=4.0),
        },
    ),
    "llama-yarn": Case(
        llama(head_dim=32, rope_parameters=YARN),
        {
            "no scaling": rotary(scaling=None),
            "other original context": scaling(original_context=128),
            "no sharpening": scaling(attention_factor=1.0),
        },
    ),
    "llama-yarn-all-parameters": Case(
        llama(head_dim=32, rope_parameters=YARN | {"beta_fast": 2.0, "beta_slow": 0.5, "attention_factor": 0.7}),
        {
            "usual beta_fast": scaling(beta_fast=32.0),
            "usual beta_slow": scaling(beta_slow=1.0),
            "usual sharpening": scaling(attention_factor=None),
        },
    ),
    "llama-yarn-before-transformers-5": Case(
        llama(head_dim=32),
        {"no scaling": rotary(scaling=None), "usual theta": rotary(theta=10000.0)},
        ("rope_parameters",),
        {
            "rope_theta": 1000.0,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
        },
    ),
    "llama-untied": Case(llama(), {"tied": lambda spec: dataclasses.replace(spec, tied_embedding=True)}),
    "llama-tied": Case(llama(tie_word_embeddings=True), {"no rotary": attention(rotary=None)}),
    "llama-head-dim": Case(
        llama(head_dim=16),
        {"scale of hidden/heads": attention(score_scale=8**-0.5), "half rotated": rotary(dimensions=8)},
    ),
    "llama-norm-eps": Case(llama(rms_norm_eps=0.1), {"usual eps": norm_eps(1e-6)}),
    "llama-gelu": Case(llama(hidden_act="gelu"), {"silu": feed_forward(activation=Activation.SILU)}),
    "llama-gelu-new": Case(llama(hidden_act="gelu_new"), {"silu": feed_forward(activation=Activation.SILU)}),
    "llama-relu": Case(llama(hidden_act="relu"), {"gelu": feed_forward(activation=Activation.GELU)}),
    "mistral": Case(mistral(sliding_window=None), {"window": ALL_WINDOWED}),
    "mistral-window": Case(
        mistral(sliding_window=WINDOW, head_dim=16),
        {
            "no window": NONE_WINDOWED,
            "one less": windows(*[WINDOW - 1] * 4),
            "one more": windows(*[WINDOW + 1] * 4),
        },
    ),
    "mistral-layer-types": Case(
        mistral(sliding_window=WINDOW),
        {"no window": NONE_WINDOWED, "window everywhere": ALL_WINDOWED},
        changes={"layer_types": ALTERNATING},
    ),
    "qwen2": Case(qwen2(), {"no bias": attention(query_key_value_bias=False), "window": ALL_WINDOWED}),
    "qwen2-upper-layers": Case(
        qwen2(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2, tie_word_embeddings=True),
        {
            "no window": NONE_WINDOWED,
            "window everywhere": ALL_WINDOWED,
            "one layer lower": windows(None, WINDOW, WINDOW, WINDOW),
            "lower layers": windows(WINDOW, WINDOW, None, None),
        },
        ("layer_types",),
    ),
    "qwen2-window-switched-off": Case(
        qwen2(),
        {"window": ALL_WINDOWED},
        ("layer_types",),
        {"use_sliding_window": False, "sliding_window": WINDOW, "max_window_layers": 0},
    ),
    "qwen2-layer-types": Case(
        qwen2(use_sliding_window=True, sliding_window=WINDOW, layer_types=ALTERNATING, head_dim=16),
        {"no window": NONE_WINDOWED, "window everywhere": ALL_WINDOWED, "one more": windows(None, 17, 17, None)},
    ),
    "qwen2-yarn": Case(qwen2(rope_parameters=YARN), {"no scaling": rotary(scaling=None)}),
    "qwen3": Case(
        qwen3(rms_norm_eps=0.1),
        {
            "no query-key norm": attention(query_key_norm=None),
            "usual query-key eps": attention(query_key_norm=NormSpec(1e-6)),
            "usual eps": norm_eps(1e-6),
        },
    ),
    "qwen3-upper-layers": Case(
        qwen3(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=3),
        {"no window": NONE_WINDOWED, "window everywhere": ALL_WINDOWED},
        ("layer_types",),
    ),
    "qwen3-layer-types-bias": Case(
        qwen3(attention_bias=True, use_sliding_window=True, sliding_window=WINDOW, layer_types=ALTERNATING),
        {
            "no window": NONE_WINDOWED,
            "window everywhere": ALL_WINDOWED,
            "one less": windows(None, 15, 15, None),
            "no input bias": attention(query_key_value_bias=False),
            "no output bias": attention(output_bias=False),
            "no query-key norm": attention(query_key_norm=None),
        },
    ),
    "qwen3-tied-yarn": Case(
        qwen3(tie_word_embeddings=True, rope_parameters=YARN), {"no scaling": rotary(scaling=None)}
    ),
}


@dataclass(frozen=True)
class Pair:
    """An opened checkpoint and the logits of transformers for the same tokens."""

    checkpoint: Checkpoint
    token_ids: torch.Tensor
    chunks: tuple[int, ...]
    context: int
    one_pass: torch.Tensor
    cached: torch.Tensor

    def logits(self) -> torch.Tensor:
        """TorchOps' logits for every token: the chunks first, the rest one by one."""
        return decoder_logits(self.checkpoint.spec, self.checkpoint, self.token_ids, self.chunks, self.context)

    def assert_broken_by(self, fault: Fault) -> None:
        """Asserts that both the prefill and the first decode steps after it go wrong."""
        spec, prefill = fault(self.checkpoint.spec), sum(self.chunks)
        token_ids = self.token_ids[: prefill + 6]
        wrong = decoder_logits(spec, WeightsInMemory.read(self.checkpoint), token_ids, self.chunks, self.context)
        assert largest_error(wrong[:prefill], self.one_pass[:prefill]) > BREAKAGE
        assert largest_error(wrong[prefill:], self.cached[prefill : len(token_ids)]) > BREAKAGE


def open_pair(folder: Path, token_ids: torch.Tensor, chunks: tuple[int, ...], context: int) -> Pair:
    model = load_reference(folder)
    cached = cached_reference_logits(model, token_ids, prefill=sum(chunks))
    one_pass = reference_logits(model, token_ids)
    return Pair(open_checkpoint(folder), token_ids, chunks, context, one_pass, cached)


@pytest.fixture(scope="module")
def open_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Opens a case by name, each only once."""

    @functools.cache
    def open_by_name(name: str) -> Pair:
        case = CASES[name]
        folder = save_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), case.config)
        edit_config(folder, case.removed, **case.changes)
        return open_pair(folder, random_tokens(PREFILL + STEPS), CHUNKS, case.config.max_position_embeddings)

    return open_by_name


@pytest.fixture
def pair(request: pytest.FixtureRequest, open_case: Callable[[str], Pair]) -> Pair:
    return open_case(request.param)


@pytest.mark.parametrize("pair", CASES, indirect=True)
def test_prefill_in_one_chunk_equals_transformers(pair: Pair) -> None:
    spec, prompt = pair.checkpoint.spec, pair.token_ids[:PREFILL]
    ours = decoder_logits(spec, pair.checkpoint, prompt, [PREFILL])
    assert largest_error(ours, pair.one_pass[:PREFILL]) < TOLERANCE


@pytest.mark.parametrize("pair", CASES, indirect=True)
def test_uneven_chunks_then_decode_past_the_window_equal_transformers(pair: Pair) -> None:
    ours = pair.logits()
    assert largest_error(ours[:PREFILL], pair.one_pass[:PREFILL]) < TOLERANCE
    assert largest_error(ours[PREFILL:], pair.cached[PREFILL:]) < TOLERANCE


@pytest.mark.parametrize(
    ("pair", "fault"),
    [
        pytest.param(name, fault, id=f"{name}: {label}")
        for name, case in CASES.items()
        for label, fault in case.faults.items()
    ],
    indirect=["pair"],
)
def test_wrong_spec_breaks_prefill_and_decode(pair: Pair, fault: Fault) -> None:
    pair.assert_broken_by(fault)


@pytest.mark.parametrize("pair", ["llama-gelu"], indirect=True)
def test_gelu_and_its_approximation_are_told_apart(pair: Pair) -> None:
    approximate = feed_forward(activation=Activation.GELU_TANH)(pair.checkpoint.spec)
    wrong = decoder_logits(approximate, pair.checkpoint, pair.token_ids[:PREFILL], CHUNKS)
    assert largest_error(wrong, pair.one_pass[:PREFILL]) > 3 * TOLERANCE


@pytest.mark.parametrize(
    "pair", ["llama-attention-bias", "llama-mlp-bias", "llama-tied", "qwen2", "qwen3-layer-types-bias"], indirect=True
)
def test_every_weight_moves_the_logits(pair: Pair) -> None:
    """Each weight in turn with its rows rotated by one: a weight read under another's name cannot go unnoticed."""
    spec, right = pair.checkpoint.spec, WeightsInMemory.read(pair.checkpoint)
    unnoticed = []
    for weight in decoder_weights(spec):
        wrong = right.replace(weight.name, right.dense(weight.name).roll(1, 0))
        logits = decoder_logits(spec, wrong, pair.token_ids[:PREFILL], [PREFILL])
        if largest_error(logits, pair.one_pass[:PREFILL]) < BREAKAGE:
            unnoticed.append(weight.name)
    assert unnoticed == []


@pytest.mark.parametrize("pair", ["llama-tied", "qwen2-upper-layers", "qwen3-tied-yarn"], indirect=True)
def test_tied_head_is_the_embedding_table(pair: Pair) -> None:
    checkpoint = pair.checkpoint
    assert "lm_head.weight" not in checkpoint.tensors
    assert HEAD not in {weight.name for weight in decoder_weights(checkpoint.spec)}
    untied = dataclasses.replace(checkpoint.spec, tied_embedding=False)
    weights, prompt = WeightsInMemory.read(checkpoint), pair.token_ids[:PREFILL]
    table = weights.dense(EMBEDDING)
    same = decoder_logits(untied, weights.replace(HEAD, table), prompt, CHUNKS)
    other = decoder_logits(untied, weights.replace(HEAD, table.roll(1, 0)), prompt, CHUNKS)
    assert largest_error(same, pair.one_pass[:PREFILL]) < TOLERANCE
    assert largest_error(other, pair.one_pass[:PREFILL]) > BREAKAGE


UNUSUAL = {
    "tie_word_embeddings with a head of its own": Case(llama(), {}, changes={"tie_word_embeddings": True}),
    "rope_scaling beside rope_parameters": Case(
        llama(head_dim=32),
        {},
        changes={"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}},
    ),
    "original_max_position_embeddings outside rope_parameters": Case(
        llama(head_dim=32),
        {},
        changes={
            "rope_parameters": rope("yarn", factor=4.0),
            "original_max_position_embeddings": ORIGINAL,
        },
    ),
    "yarn without truncation": Case(llama(head_dim=32, rope_parameters=YARN | {"truncate": False}), {}),
    "yarn with mscale": Case(llama(head_dim=32, rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}), {}),
    "yarn with factor null": Case(
        llama(head_dim=32, rope_parameters=YARN), {}, changes={"rope_parameters": YARN | {"factor": None}}
    ),
    "partial_rotary_factor of a family that rotates all": Case(llama(), {}, changes={"partial_rotary_factor": 0.5}),
    "qwen2 without max_window_layers": Case(
        qwen2(use_sliding_window=True, sliding_window=WINDOW), {}, ("layer_types", "max_window_layers")
    ),
    "qwen3 without max_window_layers": Case(
        qwen3(use_sliding_window=True, sliding_window=WINDOW), {}, ("layer_types", "max_window_layers")
    ),
    "qwen3 with window null": Case(
        qwen3(), {}, ("layer_types",), {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}
    ),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in UNUSUAL.items()])
def test_unusual_config_is_refused_or_equals_transformers(tmp_path: Path, case: Case) -> None:
    folder = save_random_checkpoint(tmp_path, case.config)
    edit_config(folder, case.removed, **case.changes)
    token_ids = random_tokens(PREFILL)
    theirs = reference_logits(load_reference(folder), token_ids)
    try:
        checkpoint = open_checkpoint(folder)
    except CheckpointError:
        return
    assert largest_error(decoder_logits(checkpoint.spec, checkpoint, token_ids, CHUNKS), theirs) < TOLERANCE


TRAINED_CHUNK, TRAINED_PREFILL = 32, 256
NO_ROTARY = attention(rotary=None)
WITHOUT_WINDOWS = layers(
    lambda _, layer: dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=None))
)
TRAINED: dict[str, Fault] = {
    "example": WITHOUT_WINDOWS,
    "qwen3-swa-5m-tinystories": WITHOUT_WINDOWS,
    "stories260K": NO_ROTARY,
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
