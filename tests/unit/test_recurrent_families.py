"""Configs of recurrent families that must be refused, by the field that stands in the way."""

from __future__ import annotations

import math
from typing import Any

import pytest

from exporter.checkpoint.config import Config
from exporter.checkpoint.family import all_families
from exporter.decoder.spec import DecoderSpec
from exporter.errors import CheckpointError


def spec_of(family: str, **changes: Any) -> DecoderSpec:
    found = all_families().get(family)
    return found.decoder_spec(Config({"model_type": family, **found.published.config, **changes}))


REFUSED: list[tuple[str, str, Any, str]] = [
    ("jamba", "expert_layer_offset", 2, "not below expert_layer_period"),
    ("jamba", "attn_layer_offset", 14, "not below attn_layer_period"),
    ("granitemoehybrid", "num_local_experts", 64, "experts"),
    ("granitemoehybrid", "layer_types", ["mamba"], "must list 32 layers"),
    ("granitemoehybrid", "layer_types", ["sliding"] * 32, "unsupported kind 'sliding'"),
    ("bamba", "attn_layer_indices", [32], "must list layers from 0 to 31"),
    ("lfm2", "full_attn_idxs", "all", "must list layers"),
    ("mamba", "hidden_act", "gelu", "not supported in recurrent layers"),
    ("mamba", "conv_kernel", 1, "must be 2 or more"),
    ("mamba2", "num_heads", 81, "81 heads of 64 channels are not the 5120 inner channels"),
    ("mamba2", "n_groups", 3, "3 does not divide 80 heads"),
    ("mamba2", "time_step_limit", [0.0, 0.1], "bounded from below only"),
    ("mamba2", "time_step_limit", [0.0], "bounded from below only"),
    ("mamba2", "time_step_limit", {"__float__": "Infinity"}, "bounded from below only"),
    ("falcon_h1", "mlp_multipliers", [1.0], "must list 2 numbers"),
    ("zamba2", "tie_word_embeddings", False, "not supported"),
    ("zamba2", "use_long_context", True, "not supported"),
    ("zamba2", "num_attention_heads", 31, "does not divide twice"),
]


@pytest.mark.parametrize(("family", "field", "value", "problem"), REFUSED, ids=lambda value: str(value)[:30])
def test_a_config_that_cannot_be_exported_names_the_field(family: str, field: str, value: Any, problem: str) -> None:
    def read() -> None:
        spec_of(family, **{field: value})
        found = all_families().get(family)
        found.weights(Config({**found.published.config, field: value}))

    with pytest.raises(CheckpointError, match=field) as caught:
        read()
    assert problem in str(caught.value)


@pytest.mark.parametrize("infinite", [math.inf, {"__float__": "Infinity"}])
def test_infinity_is_read_as_python_and_as_transformers_write_it(infinite: Any) -> None:
    mixer = spec_of("mamba2", time_step_limit=[0.002, infinite]).layers[0].recurrence
    assert mixer is not None
    assert mixer.shortest_step == 0.002
