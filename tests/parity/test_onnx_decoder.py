"""ONNX artifacts against the oracle on tiny random decoders: every cache codec, window, sink and shape of the spec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the onnx extra is not installed")
pytest.importorskip("onnx_ir", reason="the onnx extra is not installed")

from driven import scored
from onnx_artifact import SETTINGS, lower_onnx, require_parity

from exporter.decoder.cache import CacheSettings, LayerCache, cache_layout
from exporter.decoder.spec import Activation, RotaryScaling, RotaryScalingKind
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat, WeightFormat
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.onnx.driver import open_driver
from tests.unit.helpers import TinyModel, calibrated_constants, random_tokens, random_weights

FP16_32 = WeightFormat(4, 32, ScaleFormat.FP16)
PER_TOKEN = KvScaling.PER_TOKEN
CODECS = {
    "float16": KvFormat(16, KvScaling.NONE),
    "int8": KvFormat(8, PER_TOKEN),
    "int8-zero": KvFormat(8, PER_TOKEN, zero_point=True),
    "int4": KvFormat(4, PER_TOKEN),
    "int4-zero": KvFormat(4, PER_TOKEN, zero_point=True),
    "int4-rotated": KvFormat(4, PER_TOKEN, zero_point=True, rotation=True),
}
CACHES = {
    "full": CacheSettings(96, 16),
    "imposed-window": CacheSettings(96, 16, window=9),
    "sinks": CacheSettings(96, 16, window=9, sinks=3),
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
}
GQA_SETTINGS = {"activation_bits": 32, "attention": "gqa"}
GQA_CODECS = {
    "float32": KvFormat(32, KvScaling.NONE),
    "float16": KvFormat(16, KvScaling.NONE),
    "int8": KvFormat(8, KvScaling.STATIC, per_channel=True),
    "int8-one-scale": KvFormat(8, KvScaling.STATIC),
    "int4": KvFormat(4, KvScaling.STATIC, per_channel=True),
}


def export(
    model: TinyModel, kv_format: KvFormat, cache: CacheSettings, folder: Path, settings: dict = SETTINGS
) -> QuantizedDecoder:
    spec = model.spec()
    weights, layout = random_weights(spec, FP16_32), cache_layout(spec, cache)
    if settings is GQA_SETTINGS:
        layout = tuple(LayerCache(cache.context, layer.window) for layer in layout)
    constants = calibrated_constants(spec, weights, kv_format)
    decoder = QuantizedDecoder(spec, weights, layout, kv_format, constants, cache.chunk, cache.context)
    lower_onnx(decoder, folder, settings)
    return decoder


@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("kv_format", CODECS.values(), ids=CODECS)
def test_codecs_compose_with_windows_and_sinks(kv_format: KvFormat, cache: CacheSettings, tmp_path: Path) -> None:
    decoder = export(TinyModel(), kv_format, cache, tmp_path)
    require_parity(decoder, tmp_path)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_everything_that_a_spec_can_say(model: TinyModel, tmp_path: Path) -> None:
    decoder = export(model, CODECS["int8"], CACHES["full"], tmp_path)
    require_parity(decoder, tmp_path)


@pytest.mark.parametrize("kv_format", GQA_CODECS.values(), ids=GQA_CODECS)
def test_grouped_query_attention_with_every_cache(kv_format: KvFormat, tmp_path: Path) -> None:
    """One layer has a window that masks, one has none. Cached bytes are the codec's."""
    decoder = export(TinyModel(query_key_norm=True), kv_format, CACHES["full"], tmp_path, GQA_SETTINGS)
    require_parity(decoder, tmp_path)
    attention = decoder.spec.layers[0].attention
    per_slot = 2 * attention.kv_heads * kv_format.vector_bytes(attention.head_dim)
    assert open_driver(tmp_path).kv_bytes() == per_slot * sum(layer.slots for layer in decoder.layout)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_grouped_query_attention_of_every_model(model: TinyModel, tmp_path: Path) -> None:
    decoder = export(model, GQA_CODECS["float32"], CACHES["imposed-window"], tmp_path, GQA_SETTINGS)
    require_parity(decoder, tmp_path)


def test_the_cache_takes_the_bytes_of_its_codec(tmp_path: Path) -> None:
    for name, kv_format in CODECS.items():
        folder = tmp_path / name
        folder.mkdir()
        decoder = export(TinyModel(), kv_format, CACHES["sinks"], folder)
        attention = decoder.spec.layers[0].attention
        per_slot = 2 * attention.kv_heads * kv_format.vector_bytes(attention.head_dim)
        assert open_driver(folder).kv_bytes() == per_slot * sum(layer.slots for layer in decoder.layout)


def test_a_growing_cache_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = export(TinyModel(), CODECS["int8"], CACHES["full"], tmp_path)
    token_ids = random_tokens(decoder.spec, 90, seed=5)
    whole = scored(open_driver(tmp_path), token_ids, 40)
    monkeypatch.setattr("exporter.targets.onnx.driver.FIRST_SLOTS", 8)
    assert torch.equal(scored(open_driver(tmp_path), token_ids, 40), whole)


def test_a_prompt_gives_the_last_tokens_logits(tmp_path: Path) -> None:
    decoder = export(TinyModel(), CODECS["int4-zero"], CACHES["sinks"], tmp_path)
    token_ids, driver = random_tokens(decoder.spec, 50, seed=5), open_driver(tmp_path)
    last = driver.prefill(token_ids)[-1]
    driver.reset()
    np.testing.assert_allclose(driver.prompt(token_ids), last, rtol=1e-4, atol=1e-4)
