"""Token ids against the oracle's: equal, near-ties, and what makes a measurement void."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench_cases import measured
from helpers import TinyModel, quantized_decoder, random_tokens

from device_tests.harness import Measurement
from exporter.bench import check_tokens, default_lengths
from exporter.decoder.cache import CacheSettings
from exporter.errors import UsageError
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.verify.greedy import GreedyReference, clear_reference, greedy_reference, near_ties_followed
from exporter.verify.parity import NEAR_TIE_LOGITS, window_logits


@pytest.fixture(scope="module")
def decoder() -> QuantizedDecoder:
    return quantized_decoder(TinyModel(), CacheSettings(64, 4), KvFormat(8, KvScaling.PER_TOKEN))


def saying(references: list[GreedyReference], token_ids: tuple[int, ...] | None = None) -> Measurement:
    """A measurement whose every repetition has the reference's tokens, or for the first prompt these."""
    base = measured()
    for at, item in enumerate(base.heard.repetitions):
        told = token_ids if token_ids is not None and item.prompt == 0 else references[item.prompt].token_ids
        base.heard.repetitions[at] = replace(item, token_ids=told)
    return base


def test_the_reference_is_what_teacher_forcing_of_the_same_tokens_prefers(decoder: QuantizedDecoder) -> None:
    prompt = random_tokens(decoder.spec, 9)
    found = greedy_reference(decoder, prompt, 6)
    with torch.no_grad():
        logits = window_logits(decoder.oracle(), decoder.spec, [*prompt, *found.token_ids[:-1]], decoder.chunk)
    assert logits[len(prompt) - 1 :].argmax(-1).tolist() == list(found.token_ids)
    assert min(found.margins) > 0


def test_a_prompt_without_near_ties_is_preferred(decoder: QuantizedDecoder) -> None:
    text = random_tokens(decoder.spec, 40)
    found = clear_reference(decoder, text, 8, 4)
    others = [greedy_reference(decoder, text[start : start + 8], 4) for start in range(0, 32, 8)]
    clear = [item for item in others if min(item.margins) >= NEAR_TIE_LOGITS]
    assert found == (clear[0] if clear else max(others, key=lambda item: min(item.margins)))


def test_equal_tokens_pass_and_all_repetitions_are_counted(decoder: QuantizedDecoder) -> None:
    references = [greedy_reference(decoder, random_tokens(decoder.spec, size), 4) for size in (2, 4)]
    check = check_tokens(decoder, references, saying(references), False)
    assert (check.equal, check.tokens, check.near_ties, check.difference) == (True, 2 * 4 * 4, 0, "")


@pytest.mark.parametrize("accept", [True, False])
def test_a_worse_token_voids_the_measurement_whatever_is_accepted(decoder: QuantizedDecoder, accept: bool) -> None:
    references = [greedy_reference(decoder, random_tokens(decoder.spec, size), 4) for size in (2, 4)]
    worst = int(window_logits(decoder.oracle(), decoder.spec, list(references[0].prompt), decoder.chunk)[-1].argmin())
    check = check_tokens(decoder, references, saying(references, (worst, *references[0].token_ids[1:])), accept)
    assert not check.equal
    assert not check.near_ties
    assert "token 1 after the prompt of 2" in check.difference


def test_a_near_tie_passes_only_where_it_is_accepted(
    decoder: QuantizedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.verify.greedy.NEAR_TIE_LOGITS", 1e9)
    references = [greedy_reference(decoder, random_tokens(decoder.spec, size), 4) for size in (2, 4)]
    other = ((references[0].token_ids[0] + 1) % decoder.spec.vocab_size, *references[0].token_ids[1:])
    assert near_ties_followed(decoder, references[0].prompt, other)
    assert "near-tie" in check_tokens(decoder, references, saying(references, other), False).difference
    accepted = check_tokens(decoder, references, saying(references, other), True)
    assert accepted.near_ties > 0
    assert not accepted.equal


def test_missing_tokens_are_a_difference() -> None:
    reference = GreedyReference((1,), (4, 5, 6), (1.0, 1.0, 1.0))
    assert reference.difference((4, 5, 6)) is None
    assert reference.difference((4, 5)) == 2
    assert reference.difference((4, 9, 6)) == 1


def test_prompts_are_cut_to_the_context() -> None:
    assert default_lengths(1024, 64) == (32, 256)
    assert default_lengths(128, 64) == (32, 64)
    assert default_lengths(80, 64) == (16,)
    with pytest.raises(UsageError):
        default_lengths(64, 64)
