"""ExecuTorch programs against the oracle on tiny random decoders: cache codecs, windows, sinks, shapes of the spec, both operator sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from executorch_artifact import lower_executorch, require_parity

from exporter.decoder.cache import CacheSettings
from exporter.decoder.spec import Activation, RotaryScaling, RotaryScalingKind
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.kernels.build import find_compiler
from exporter.targets.executorch.xnnpack.driver import open_driver
from tests.unit.helpers import TinyModel, random_tokens

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler on this machine")

PER_TOKEN = KvScaling.PER_TOKEN
INT8, INT4 = KvFormat(8, PER_TOKEN), KvFormat(4, PER_TOKEN, zero_point=True)
FLOAT_CACHE = KvFormat(32, KvScaling.NONE)
FULL, SINKS = CacheSettings(96, 16), CacheSettings(96, 16, window=9, sinks=3)
DYNAMIC = {"activation_bits": 8}
PLAIN = {"activation_bits": 8, "operators": "plain"}
WHOLE_GROUPS = TinyModel(hidden_size=64, inner_size=96, head_dim=16, rotated=16)
"""XNNPACK's groups of weights have no remainder."""
ONE_LAYER = replace(WHOLE_GROUPS, windows=(6,), bias=True)
"""Of hundreds of operators where they are ExecuTorch's own, each of which takes its time to lower."""

SEVERAL = "biases-norms-partial-rotary-yarn-gelu-remainder"
"""Lowering takes seconds: one model that says all of it at once; the slow ones say which of it is wrong."""
MODELS = {
    SEVERAL: TinyModel(
        inner_size=56,
        rotated=4,
        bias=True,
        query_key_norm=True,
        activation=Activation.GELU_TANH,
        scaling=RotaryScaling(RotaryScalingKind.YARN, 4.0, 64),
    ),
    "biases-and-norms": TinyModel(bias=True, query_key_norm=True),
    "untied": TinyModel(tied=False),
    "partial-rotary": TinyModel(rotated=4),
    "gelu": TinyModel(activation=Activation.GELU_TANH),
    "yarn": TinyModel(scaling=RotaryScaling(RotaryScalingKind.YARN, 4.0, 64)),
    "remainder-groups": TinyModel(inner_size=56),
}


CODECS = {"int8": INT8, "int4-zero": INT4}


@pytest.fixture(scope="module", params=CODECS.values(), ids=CODECS)
def with_sinks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[QuantizedDecoder, Path]:
    """A ring with sinks in every layer, and the program of it."""
    folder = tmp_path_factory.mktemp("sinks")
    return lower_executorch(TinyModel(), SINKS, request.param, folder), folder


def test_packed_caches_compose_with_windows_and_sinks(with_sinks: tuple[QuantizedDecoder, Path]) -> None:
    require_parity(*with_sinks)


@pytest.mark.parametrize(
    "kv_format", [pytest.param(INT8, id="int8", marks=pytest.mark.slow), pytest.param(INT4, id="int4-zero")]
)
def test_packed_caches_of_the_whole_context(kv_format: KvFormat, tmp_path: Path) -> None:
    require_parity(lower_executorch(TinyModel(), FULL, kv_format, tmp_path), tmp_path)


@pytest.mark.parametrize(
    "name", [name if name == SEVERAL else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_everything_that_a_spec_can_say(name: str, tmp_path: Path) -> None:
    require_parity(lower_executorch(MODELS[name], FULL, INT8, tmp_path), tmp_path, 1e-4)


@pytest.mark.parametrize(
    ("model", "kv_format"),
    [
        pytest.param(ONE_LAYER, INT4, id="int4-zero"),
        pytest.param(WHOLE_GROUPS, INT4, id="int4-zero-two-layers", marks=pytest.mark.slow),
        pytest.param(WHOLE_GROUPS, FLOAT_CACHE, id="float32", marks=pytest.mark.slow),
    ],
)
def test_plain_operators_with_rings_and_sinks(model: TinyModel, kv_format: KvFormat, tmp_path: Path) -> None:
    require_parity(lower_executorch(model, SINKS, kv_format, tmp_path, PLAIN), tmp_path, 1e-2)


@pytest.mark.slow
def test_dynamic_activations_with_a_bias(tmp_path: Path) -> None:
    """One of the models of plain operators has a bias behind such products too."""
    decoder = lower_executorch(replace(WHOLE_GROUPS, bias=True), SINKS, INT8, tmp_path, DYNAMIC)
    require_parity(decoder, tmp_path, 1e-2)


def test_the_cache_takes_the_bytes_of_its_codec(with_sinks: tuple[QuantizedDecoder, Path]) -> None:
    decoder, folder = with_sinks
    attention = decoder.spec.layers[0].attention
    per_slot = 2 * attention.kv_heads * decoder.kv_format.vector_bytes(attention.head_dim)
    assert open_driver(folder).kv_bytes() == per_slot * sum(layer.slots for layer in decoder.layout)


def test_a_prompt_gives_the_last_tokens_logits_and_a_reset_forgets(with_sinks: tuple[QuantizedDecoder, Path]) -> None:
    decoder, folder = with_sinks
    token_ids, driver = random_tokens(decoder.spec, 50, seed=5), open_driver(folder)
    last = driver.prefill(token_ids)[-1]
    driver.reset()
    np.testing.assert_array_equal(driver.prompt(token_ids), last)
    driver.reset()
    np.testing.assert_array_equal(driver.prompt(token_ids), last)
