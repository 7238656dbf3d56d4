"""The oracle: independent of how tokens are cut into chunks, and equal to a decoder without caches."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    TinyModel,
    decode_in_pieces,
    quantized_decoder,
    random_tokens,
    random_weights,
    reference_logits,
    relative_error,
)

from exporter.decoder.cache import CacheSettings, cache_layout
from exporter.decoder.forward import decode_chunk
from exporter.decoder.sequence_ops import SequenceOps
from exporter.decoder.spec import Activation, RotaryScaling, RotaryScalingKind
from exporter.decoder.torch_ops import TorchOps
from exporter.quantize.formats import KvFormat, KvScaling

TOKENS = 31
FORMATS = [
    KvFormat(8, KvScaling.STATIC),
    KvFormat(4, KvScaling.STATIC, per_channel=True),
    KvFormat(8, KvScaling.PER_TOKEN),
    KvFormat(4, KvScaling.PER_TOKEN, zero_point=True, rotation=True),
    KvFormat(16, KvScaling.NONE),
]
MODELS = {
    "plain": TinyModel(),
    "biases": TinyModel(bias=True, tied=False),
    "query-key-norm": TinyModel(query_key_norm=True, kv_heads=4),
    "partial-rotary-gelu": TinyModel(rotated=4, activation=Activation.GELU, kv_heads=1),
    "yarn-tanh": TinyModel(
        activation=Activation.GELU_TANH, scaling=RotaryScaling(RotaryScalingKind.YARN, 4.0, original_context=64)
    ),
    "relu": TinyModel(activation=Activation.RELU, windows=(3, None, 9)),
}
CACHES = [(None, 0), (7, 0), (5, 2)]


def assert_same_logits(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to float noise, but for the few tokens where the noise moves a cached code to its neighbour."""
    difference = (found - expected).abs()
    assert float(difference.median()) < 5e-4
    assert relative_error(found, expected) < 0.002


@pytest.mark.parametrize(("window", "sinks"), CACHES)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_logits_with_a_float_cache_equal_a_decoder_without_caches(
    model: TinyModel, window: int | None, sinks: int
) -> None:
    spec = model.spec()
    weights, tokens = random_weights(spec), random_tokens(spec, TOKENS)
    ops = TorchOps(spec, weights, cache_layout(spec, CacheSettings(64, 6, window, sinks)))
    expected = reference_logits(spec, weights, tokens, window, sinks)
    assert relative_error(decode_in_pieces(ops, tokens, [6]), expected) < 1e-5


@pytest.mark.parametrize("kv_format", FORMATS, ids=lambda entry: f"{entry.bits}-{entry.scaling.value}")
@pytest.mark.parametrize(("window", "sinks"), CACHES)
def test_the_cut_into_chunks_does_not_change_logits(kv_format: KvFormat, window: int | None, sinks: int) -> None:
    model = TinyModel(windows=(None, 6, 11))
    decoder = quantized_decoder(model, CacheSettings(64, TOKENS, window, sinks), kv_format)
    tokens = random_tokens(decoder.spec, TOKENS)
    whole = decode_in_pieces(decoder.oracle(), tokens, [TOKENS])
    for sizes in ([1], [3, 11, 1, 8, 5]):
        assert_same_logits(decode_in_pieces(decoder.oracle(), tokens, sizes), whole)


@pytest.mark.parametrize(("window", "sinks"), CACHES)
def test_the_chunk_that_rings_are_sized_for_does_not_change_logits(window: int | None, sinks: int) -> None:
    kv_format, model = KvFormat(8, KvScaling.STATIC), TinyModel(windows=(None, 6, 11))
    results = []
    for chunk in (1, 5, TOKENS):
        decoder = quantized_decoder(model, CacheSettings(64, chunk, window, sinks), kv_format)
        results.append(decode_in_pieces(decoder.oracle(), random_tokens(decoder.spec, TOKENS), [chunk]))
    assert_same_logits(results[0], results[2])
    assert_same_logits(results[1], results[2])


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_whole_sequences_without_a_cache_equal_the_reference_each(model: TinyModel) -> None:
    spec = model.spec()
    weights, sequences = random_weights(spec), [random_tokens(spec, TOKENS, seed) for seed in range(3)]
    found = decode_chunk(SequenceOps(weights, TOKENS), spec, torch.tensor(sequences).flatten())
    for logits, tokens in zip(found.split(TOKENS), sequences, strict=True):
        assert relative_error(logits, reference_logits(spec, weights, tokens)) < 1e-5


def test_windows_and_sinks_really_matter_once_the_window_is_full() -> None:
    spec = TinyModel(windows=(None,)).spec()
    weights, tokens = random_weights(spec), random_tokens(spec, TOKENS)
    full, windowed, sunk = (
        decode_in_pieces(TorchOps(spec, weights, cache_layout(spec, CacheSettings(64, 4, *bounds))), tokens, [4])
        for bounds in ((None, 0), (7, 0), (7, 2))
    )
    torch.testing.assert_close(windowed[:7], full[:7])
    assert relative_error(windowed[8:], full[8:]) > 0.05
    assert relative_error(sunk[9:], windowed[9:]) > 0.05


def test_coarser_caches_err_more_but_stay_close() -> None:
    model, settings, errors = TinyModel(), CacheSettings(64, 8), []
    spec = model.spec()
    tokens = random_tokens(spec, TOKENS)
    exact = reference_logits(spec, random_weights(spec), tokens)
    for bits in (16, 8, 4):
        scaling = KvScaling.NONE if bits == 16 else KvScaling.PER_TOKEN
        decoder = quantized_decoder(model, settings, KvFormat(bits, scaling))
        errors.append(relative_error(decode_in_pieces(decoder.oracle(), tokens, [8]), exact))
    assert errors[0] < errors[1] < errors[2] < 0.5
    assert errors[1] < 0.05


def test_reset_forgets_the_conversation() -> None:
    decoder = quantized_decoder(TinyModel(), CacheSettings(64, 8, 5, 1), KvFormat(8, KvScaling.STATIC))
    tokens, ops = random_tokens(decoder.spec, 20), decoder.oracle()
    first = decode_in_pieces(ops, tokens, [8])
    assert torch.equal(decode_in_pieces(ops, tokens, [8]), first)
