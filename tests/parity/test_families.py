"""Every family computes the fp32 logits of transformers: in one chunk, in uneven chunks, and in cached decoding."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from all_cases import CASES
from family_cases import ORIGINAL, llama, rope
from random_checkpoint import (
    BREAKAGE,
    CHUNKS,
    CONTEXT,
    PREFILL,
    STEPS,
    TOLERANCE,
    decoder_logits,
    edit_config,
    largest_error,
    random_tokens,
    save_random_checkpoint,
)
from recurrent_cases import RECURRENT_FAMILIES
from reference_pair import Pair, open_pair
from spec_faults import Fault, feed_forward, rotary

from exporter.checkpoint.family import read_spec
from exporter.decoder.forward import decode_chunk
from exporter.decoder.sequence_ops import SequenceOps
from exporter.decoder.spec import Activation, rotary_settings
from exporter.decoder.weight_names import EMBEDDING, HEAD, decoder_weights
from exporter.errors import CheckpointError

WEIGHED = [
    "granite",
    "gemma2-no-caps-bias",
    "gemma3_text",
    "phi3",
    "smollm3-windows",
    "olmo2",
    "phi",
    "stablelm",
    "gpt2",
    "gpt_neox",
    "falcon-new-architecture",
    "mpt",
    "qwen3_moe",
    "qwen2_moe",
    "mixtral",
    "gpt_oss",
    "deepseek_v2",
    "deepseek_v3",
    "olmoe",
    *RECURRENT_FAMILIES,
]
"""Cases of the other families that have every weight of theirs."""


@pytest.fixture(scope="module")
def open_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Opens a case by name, each only once."""

    @functools.cache
    def open_by_name(name: str) -> Pair:
        case = CASES[name]
        folder = save_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), case.config, embedding=case.embedding)
        edit_config(folder, case.removed, **case.changes)
        return open_pair(folder, random_tokens(PREFILL + STEPS), CHUNKS, CONTEXT, case.implementation)

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


@pytest.mark.parametrize("pair", CASES, indirect=True)
def test_whole_sequences_equal_transformers(pair: Pair) -> None:
    """As calibration and full-precision perplexity see them: two at once, without a cache."""
    spec, prompt = pair.checkpoint.for_context(pair.context).spec, pair.token_ids[:PREFILL]
    ops = SequenceOps(pair.checkpoint, PREFILL)
    twice = decode_chunk(ops, spec, prompt.repeat(2))
    for ours in twice.split(PREFILL):
        assert largest_error(ours, pair.one_pass[:PREFILL]) < TOLERANCE


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
    "pair",
    ["llama-attention-bias", "llama-mlp-bias", "llama-tied", "qwen2", "qwen3-layer-types-bias", *WEIGHED],
    indirect=True,
)
def test_every_weight_moves_the_logits(pair: Pair) -> None:
    """Each weight in turn with its rows (or its one row) rotated by one: a weight read under another's name cannot go unnoticed."""
    spec, right = pair.checkpoint.spec, pair.weights
    unnoticed = []
    for weight in decoder_weights(spec):
        wrong = right.replace(weight.name, right.dense(weight.name).roll(1, 0 if weight.shape[0] > 1 else -1))
        logits = decoder_logits(spec, wrong, pair.token_ids[:PREFILL], [PREFILL])
        if weight.name.endswith("attention.key.bias") and not rotary_settings(spec):
            continue  # adds one number to all scores of a query, which its softmax takes off again
        if largest_error(logits, pair.one_pass[:PREFILL]) < BREAKAGE:
            unnoticed.append(weight.name)
    assert unnoticed == []


@pytest.mark.parametrize("pair", ["llama-tied", "qwen2-upper-layers", "qwen3-tied-yarn"], indirect=True)
def test_tied_head_is_the_embedding_table(pair: Pair) -> None:
    checkpoint = pair.checkpoint
    assert "lm_head.weight" not in checkpoint.tensors
    assert HEAD not in {weight.name for weight in decoder_weights(checkpoint.spec)}
    untied = dataclasses.replace(checkpoint.spec, tied_embedding=False)
    weights, prompt = pair.weights, pair.token_ids[:PREFILL]
    table = weights.dense(EMBEDDING)
    same = decoder_logits(untied, weights.replace(HEAD, table), prompt, CHUNKS)
    other = decoder_logits(untied, weights.replace(HEAD, table.roll(1, 0)), prompt, CHUNKS)
    assert largest_error(same, pair.one_pass[:PREFILL]) < TOLERANCE
    assert largest_error(other, pair.one_pass[:PREFILL]) > BREAKAGE


def test_dynamic_scaling_at_the_length_that_the_decoder_is_made_for(tmp_path: Path) -> None:
    """transformers changes the frequencies as a conversation grows. Cached keys cannot follow: the decoder settles on its context."""
    parameters = rope("dynamic", factor=4.0)
    folder = save_random_checkpoint(tmp_path, llama(max_position_embeddings=ORIGINAL, rope_parameters=parameters))
    pair = open_pair(folder, random_tokens(PREFILL), CHUNKS, PREFILL)
    unscaled = rotary(scaling=None)
    assert pair.checkpoint.spec.context_limit == 4 * ORIGINAL
    assert largest_error(pair.logits(), pair.one_pass) < TOLERANCE
    plain = dataclasses.replace(
        pair, checkpoint=dataclasses.replace(pair.checkpoint, spec=unscaled(pair.checkpoint.spec))
    )
    assert largest_error(plain.logits(), pair.one_pass) > BREAKAGE
    within = open_pair(folder, random_tokens(ORIGINAL), (ORIGINAL,), ORIGINAL)
    assert largest_error(within.logits(), within.one_pass) < TOLERANCE


@pytest.mark.parametrize("former", ["su", "yarn"])
def test_former_names_of_longrope_mean_longrope(tmp_path: Path, former: str) -> None:
    folder = save_random_checkpoint(tmp_path, CASES["phi3-longrope-long-context"].config)
    expected = read_spec(folder)
    parameters = json.loads((folder / "config.json").read_text(encoding="utf-8"))["rope_parameters"]
    edit_config(folder, rope_parameters=parameters | {"rope_type": former})
    assert read_spec(folder) == expected
    edit_config(folder, rope_parameters=rope("linear", factor=2.0))
    with pytest.raises(CheckpointError, match="longrope only"):
        read_spec(folder)
