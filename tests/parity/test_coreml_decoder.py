"""Core ML packages against the oracle on tiny random decoders: every cache, window, sink and shape of the spec, in both layouts.

With nothing rounded to 16 bits the package must say what the oracle says to 1e-4 of a logit; rounded, nearly so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the coreml extra is not installed")

from coreml_package import lower_coreml, require_parity
from driven import scored

from exporter.decoder.cache import CacheSettings, LayerCache, cache_layout
from exporter.decoder.spec import Activation, RotaryScaling, RotaryScalingKind
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat, WeightFormat
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized, save_quantized
from exporter.targets.coreml.driver import open_driver, open_exact_driver
from exporter.targets.coreml.lower import lower_in_child
from exporter.targets.coreml.names import PACKAGE, PACKAGE_FILES
from exporter.targets.coreml.profile import Profile
from exporter.verify.parity import compare_logits, window_logits
from tests.unit.helpers import TinyModel, calibrated_constants, random_tokens, random_weights

FP16_32 = WeightFormat(4, 32, ScaleFormat.FP16)
CODECS = {
    "float16": KvFormat(16, KvScaling.NONE),
    "int4": KvFormat(4, KvScaling.PER_TOKEN, half_lanes=True),
    "int4-zero": KvFormat(4, KvScaling.PER_TOKEN, zero_point=True, half_lanes=True),
}
CACHES = {
    "full": CacheSettings(96, 16),
    "imposed-window": CacheSettings(96, 16, window=9),
    "sinks": CacheSettings(96, 16, window=9, sinks=3),
    "long-window": CacheSettings(96, 16, window=80),
    "single-tokens": CacheSettings(96, 1, window=9),
}
MODELS = {
    "biases-and-norms": TinyModel(bias=True, query_key_norm=True),
    "untied": TinyModel(tied=False),
    "partial-rotary": TinyModel(rotated=4),
    "gelu": TinyModel(activation=Activation.GELU_TANH),
    "relu": TinyModel(activation=Activation.RELU),
    "gelu-erf": TinyModel(activation=Activation.GELU),
    "yarn": TinyModel(scaling=RotaryScaling(RotaryScalingKind.YARN, 4.0, 64)),
    "one-head": TinyModel(query_heads=1, kv_heads=1),
    "remainder-groups": TinyModel(hidden_size=40, inner_size=56),
    "odd-heads": TinyModel(query_heads=3, kv_heads=3, head_dim=10),
}
PROFILES = list(Profile)


def export(
    model: TinyModel,
    kv_format: KvFormat,
    cache: CacheSettings,
    profile: Profile,
    folder: Path,
    weight_format: WeightFormat = FP16_32,
) -> QuantizedDecoder:
    """A package in `folder`, and the decoder that it must equal."""
    spec, multiple = model.spec(), profile.slot_multiple(cache.chunk)
    weights = random_weights(spec, weight_format)
    layout = tuple(
        LayerCache(-(-layer.slots // multiple) * multiple, layer.window, layer.sinks)
        for layer in cache_layout(spec, cache)
    )
    constants = calibrated_constants(spec, weights, kv_format)
    decoder = QuantizedDecoder(spec, weights, layout, kv_format, constants, cache.chunk, cache.context)
    return lower_coreml(decoder, profile, folder)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("cache", ["full", "imposed-window", "sinks"])
@pytest.mark.parametrize("kv_format", CODECS.values(), ids=CODECS)
def test_codecs_compose_with_windows_and_sinks(
    kv_format: KvFormat, cache: str, profile: Profile, tmp_path: Path
) -> None:
    """And the cache takes the bytes of its codec."""
    decoder = export(TinyModel(), kv_format, CACHES[cache], profile, tmp_path)
    require_parity(decoder, tmp_path)
    attention = decoder.spec.layers[0].attention
    per_slot = 2 * attention.kv_heads * kv_format.vector_bytes(attention.head_dim)
    assert open_driver(tmp_path).kv_bytes() == per_slot * sum(layer.slots for layer in decoder.layout)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("cache", ["long-window", "single-tokens"])
def test_windows_of_nearly_the_context_and_chunks_of_one_token(cache: str, profile: Profile, tmp_path: Path) -> None:
    require_parity(export(TinyModel(), CODECS["float16"], CACHES[cache], profile, tmp_path), tmp_path)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_everything_that_a_spec_can_say(model: TinyModel, profile: Profile, tmp_path: Path) -> None:
    require_parity(export(model, CODECS["float16"], CACHES["full"], profile, tmp_path), tmp_path)


def test_activations_that_overflow_fp16_when_squared_do_no_harm(tmp_path: Path) -> None:
    """Norms of both layouts must take hidden states of a few hundred: trained models have such channels."""
    for profile in PROFILES:
        folder = tmp_path / profile.value
        folder.mkdir()
        decoder = export(TinyModel(), CODECS["float16"], CACHES["full"], profile, folder)
        table = decoder.weights.matrices["embedding"]
        table.scales.mul_(256)
        save_quantized(decoder, folder)
        for name in (PACKAGE, "host.json"):
            (folder / name).rename(folder / f"old_{name}")
        lower_in_child(
            {"quantized": str(folder), "artifact": str(folder), "profile": profile.value}, lambda event: None
        )
        token_ids = random_tokens(decoder.spec, 40, seed=6)
        expected = window_logits(load_quantized(folder).oracle(), decoder.spec, token_ids, decoder.chunk)
        assert float(expected.abs().max()) > 300
        figures = compare_logits(expected, scored(open_driver(folder), token_ids, 30))
        assert figures.top1_agreement > 0.97


@pytest.mark.parametrize("profile", PROFILES)
def test_palettes_and_int8_tables(profile: Profile, tmp_path: Path) -> None:
    model = TinyModel(vocab_size=64)
    for name, weight_format in {
        "palettes": WeightFormat(4, 32, ScaleFormat.FP16, palette_rows=4),
        "int8": WeightFormat(8, 32, ScaleFormat.FP16),
        "lpbq": WeightFormat(4, 16, ScaleFormat.LPBQ),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        require_parity(export(model, CODECS["int4"], CACHES["sinks"], profile, folder, weight_format), folder)


def test_int4_states_are_more_than_two_and_a_half_times_smaller_at_head_dim_64() -> None:
    assert CODECS["float16"].vector_bytes(64) / CODECS["int4"].vector_bytes(64) > 2.7


@pytest.mark.parametrize("profile", PROFILES)
def test_a_prompt_in_pieces_says_what_a_prompt_at_once_says(profile: Profile, tmp_path: Path) -> None:
    """Pieces end in the middle of chunks, which are sent again; the ring wraps in between."""
    decoder = export(TinyModel(), CODECS["float16"], CACHES["imposed-window"], profile, tmp_path)
    token_ids, driver = random_tokens(decoder.spec, 90, seed=8), open_exact_driver(tmp_path)
    whole = scored(driver, token_ids, 90)
    driver.reset()
    pieces = [driver.prefill(token_ids[:21]), driver.decode(token_ids[21])[None], driver.prefill(token_ids[22:70])]
    pieces += [driver.decode(token_ids[70])[None], driver.prefill(token_ids[71:])]
    np.testing.assert_allclose(np.concatenate(pieces), whole.numpy(), atol=2e-5)


@pytest.mark.parametrize("profile", PROFILES)
def test_two_packages_of_one_decoder_are_the_same_bytes(profile: Profile, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        export(TinyModel(), CODECS["int4"], CACHES["sinks"], profile, tmp_path / name)
    for name in PACKAGE_FILES:
        first, second = ((tmp_path / folder / PACKAGE / name).read_bytes() for folder in ("first", "second"))
        assert first == second, name
