"""Judging an INT4 cache with the oracle's codes in it: what is put in is what is read, and a wrong code is seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools", reason="the coreml extra is not installed")

from coreml_package import lower_coreml

from exporter.decoder.cache import CacheSettings
from exporter.decoder.torch_ops import TorchOps
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.coreml.profile import Profile
from exporter.verify.same_codes import TOKENS, compare_in_child
from tests.unit.helpers import TinyModel, quantized_decoder, random_tokens

CODED = KvFormat(4, KvScaling.PER_TOKEN, zero_point=True, half_lanes=True)


@pytest.fixture(params=list(Profile))
def package(request: pytest.FixtureRequest, tmp_path: Path) -> QuantizedDecoder:
    decoder = quantized_decoder(TinyModel(), CacheSettings(96, 16, window=20, sinks=2), CODED)
    return lower_coreml(decoder, request.param, tmp_path)


def compare(decoder: QuantizedDecoder, folder: Path) -> dict:
    arguments = {
        "driver": "exporter.targets.coreml.driver:open_driver",
        "folder": str(folder),
        "quantized": str(folder),
        "window": random_tokens(decoder.spec, 96, seed=11),
    }
    return compare_in_child(arguments, lambda event: None)


def test_with_the_oracles_codes_only_one_tokens_arithmetic_differs(package: QuantizedDecoder, tmp_path: Path) -> None:
    figures = compare(package, tmp_path)
    assert figures["tokens"] == TOKENS
    assert figures["mean_kl"] < 1e-4


def test_codes_that_are_not_the_oracles_are_seen(
    package: QuantizedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = TorchOps.stored_cache

    def shifted(oracle: TorchOps) -> dict[str, np.ndarray]:
        return {name: np.roll(part, 1, axis=0) for name, part in right(oracle).items()}

    monkeypatch.setattr(TorchOps, "stored_cache", shifted)
    assert compare(package, tmp_path)["mean_kl"] > 1e-3
