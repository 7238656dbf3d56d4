"""Rotary frequencies and angles against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import TinyModel, normal, random_weights
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from exporter.decoder.cache import CacheSettings, cache_layout
from exporter.decoder.forward import decode_chunk
from exporter.decoder.rotary import attention_factor, cosine_sine, inverse_frequencies
from exporter.decoder.spec import RotaryScaling, RotaryScalingKind, RotarySpec
from exporter.decoder.torch_ops import TorchOps
from exporter.decoder.weight_names import EMBEDDING

LINEAR, LLAMA3, YARN = RotaryScalingKind.LINEAR, RotaryScalingKind.LLAMA3, RotaryScalingKind.YARN
CASES = {
    "plain": None,
    "linear": RotaryScaling(LINEAR, 4.0),
    "llama3": RotaryScaling(LLAMA3, 8.0, 8192),
    "llama3-other-bands": RotaryScaling(LLAMA3, 32.0, 4096, 2.0, 16.0),
    "llama3-short": RotaryScaling(LLAMA3, 4.0, 64),
    "yarn": RotaryScaling(YARN, 4.0, 2048),
    "yarn-other-betas": RotaryScaling(YARN, 16.0, 4096, beta_fast=16.0, beta_slow=2.0),
    "yarn-given-factor": RotaryScaling(YARN, 8.0, 32768, attention_factor=0.8),
    "yarn-unstretched": RotaryScaling(YARN, 1.0, 512),
}
SHAPES = [(8, 10000.0), (64, 500000.0), (128, 1000000.0)]

every_case = pytest.mark.parametrize("scaling", CASES.values(), ids=CASES)
every_shape = pytest.mark.parametrize(("dimensions", "theta"), SHAPES)


def transformers_config(head_dim: int, theta: float, scaling: RotaryScaling | None) -> LlamaConfig:
    """The same settings as a Llama configuration."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        parameters |= {"rope_type": scaling.kind.value, "factor": scaling.factor}
        if scaling.kind is not LINEAR:
            parameters["original_max_position_embeddings"] = scaling.original_context
        if scaling.kind is LLAMA3:
            parameters["low_freq_factor"] = scaling.low_frequency_factor
            parameters["high_freq_factor"] = scaling.high_frequency_factor
        if scaling.kind is YARN:
            parameters |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
            if scaling.attention_factor is not None:
                parameters["attention_factor"] = scaling.attention_factor
    return LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=65536,
        rope_parameters=parameters,
    )


@pytest.mark.parametrize("scaling", list(CASES.values())[1:], ids=list(CASES)[1:])
@every_shape
def test_scaled_frequencies_equal_those_of_transformers(dimensions: int, theta: float, scaling: RotaryScaling) -> None:
    config = transformers_config(dimensions, theta, scaling)
    expected, factor = ROPE_INIT_FUNCTIONS[scaling.kind.value](config, torch.device("cpu"))
    rotary = RotarySpec(dimensions, theta, scaling)
    torch.testing.assert_close(inverse_frequencies(rotary), expected, rtol=1e-6, atol=0)
    assert attention_factor(rotary) == pytest.approx(factor, rel=1e-9)


@every_case
@every_shape
def test_cosines_and_sines_equal_those_of_transformers(
    dimensions: int, theta: float, scaling: RotaryScaling | None
) -> None:
    positions = torch.tensor([0, 1, 2, 63, 500, 4095])
    module = LlamaRotaryEmbedding(transformers_config(dimensions, theta, scaling))
    expected = module(torch.zeros(1, len(positions), dimensions), positions[None])
    for found, table in zip(cosine_sine(RotarySpec(dimensions, theta, scaling), positions), expected, strict=True):
        torch.testing.assert_close(torch.cat((found, found), -1), table[0], rtol=0, atol=2e-3)


def test_every_scaling_rule_really_changes_the_frequencies() -> None:
    plain = inverse_frequencies(RotarySpec(64, 500000.0))
    for name, scaling in CASES.items():
        changed = not torch.allclose(inverse_frequencies(RotarySpec(64, 500000.0, scaling)), plain, rtol=1e-3)
        assert changed == (name not in ("plain", "yarn-unstretched")), name


@every_case
def test_rotating_heads_equals_transformers_and_leaves_the_rest_alone(scaling: RotaryScaling | None) -> None:
    spec = TinyModel(windows=(None,)).spec()
    ops = TorchOps(spec, random_weights(spec), cache_layout(spec, CacheSettings(64, 32)))
    decode_chunk(ops, spec, torch.arange(17))
    ops.embedding(torch.arange(5), EMBEDDING)
    heads, positions = normal(1, 5, 3, 12), torch.arange(17, 22)[None]
    found = ops.rotary(heads, RotarySpec(8, 10000.0, scaling))
    module = LlamaRotaryEmbedding(transformers_config(8, 10000.0, scaling))
    cosine, sine = module(heads, positions)
    rotated = heads[None, :, :, :8].transpose(1, 2)
    expected, _ = apply_rotary_pos_emb(rotated, rotated, cosine, sine)
    torch.testing.assert_close(found[..., :8], expected[0].transpose(0, 1), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[..., 8:], heads[..., 8:])
