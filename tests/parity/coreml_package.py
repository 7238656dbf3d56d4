"""Lowers a quantized decoder to a Core ML package in this process, and compares what the interpreter makes of it with the oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from driven import scored

from exporter.decoder.torch_ops import TorchOps
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized, save_quantized
from exporter.targets.coreml.driver import open_driver, open_exact_driver
from exporter.targets.coreml.lower import lower_in_child
from exporter.targets.coreml.profile import Profile
from exporter.verify.parity import compare_logits, window_logits
from tests.unit.helpers import random_tokens

EXACT_LIMIT = 1e-4


def lower_coreml(decoder: QuantizedDecoder, profile: Profile, folder: Path) -> QuantizedDecoder:
    """A package in `folder`, and the decoder that it must equal."""
    multiple = profile.slot_multiple(decoder.chunk)
    layout = tuple(replace(layer, slots=-(-layer.slots // multiple) * multiple) for layer in decoder.layout)
    save_quantized(replace(decoder, layout=layout), folder)
    arguments = {"quantized": str(folder), "artifact": str(folder), "profile": profile.value}
    lower_in_child(arguments, lambda event: None)
    return load_quantized(folder)


def require_parity(
    decoder: QuantizedDecoder, folder: Path, largest_kl: float = 1e-4, least_agreement: float = 0.95
) -> None:
    """A code that lies on a border falls either way by the order of a sum: with an INT4 cache a few tokens may differ by more."""
    token_ids = random_tokens(decoder.spec, 90, seed=5)
    coded = decoder.kv_format.bits == 4

    def expected(oracle: TorchOps) -> torch.Tensor:
        return window_logits(oracle, decoder.spec, token_ids, decoder.chunk)

    exact, driver = expected(decoder.exact_oracle()), open_exact_driver(folder)
    limit = EXACT_LIMIT * max(1.0, float(exact.abs().max()) / 10)  # float32 has 24 bits, of large logits too
    for prefilled in (0, 53, 90):
        errors = (scored(driver, token_ids, prefilled) - exact).abs().amax(-1)
        assert float((errors < limit).float().mean()) >= (0.75 if coded else 1.0)
    figures = compare_logits(expected(decoder.oracle()), scored(open_driver(folder), token_ids, 53))
    assert figures.mean_kl < (5e-3 if coded else largest_kl)
    assert figures.top1_agreement > least_agreement
