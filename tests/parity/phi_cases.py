"""Phi, Phi-3, SmolLM3, OLMo 2 and StableLM with every switch on."""

from __future__ import annotations

from typing import Any

from family_cases import ALL_WINDOWED, ALTERNATING, NONE_WINDOWED, ORIGINAL, YARN, Case, rope
from gemma_cases import layer_norms, whole
from random_checkpoint import CONTEXT, WINDOW, tiny_shape
from spec_faults import attention, feed_forward, norm_eps, rotary, scaling
from transformers import Olmo2Config, Phi3Config, PhiConfig, SmolLM3Config, StableLmConfig

from exporter.decoder.spec import Activation

SHORT, LONG = [1.0, 1.1, 1.3], [1.5, 2.0, 3.5]
LONGROPE = rope("longrope", short_factor=SHORT, long_factor=LONG, partial_rotary_factor=0.75)
"""Six of eight channels are rotated: three pairs."""


def phi3(**changes: Any) -> Phi3Config:
    return Phi3Config(**tiny_shape(**{"pad_token_id": 0} | changes))


def phi(**changes: Any) -> PhiConfig:
    return PhiConfig(**tiny_shape(**{"hidden_size": 64} | changes))


def smollm3(**changes: Any) -> SmolLM3Config:
    return SmolLM3Config(**tiny_shape(**{"pad_token_id": 0, "no_rope_layer_interval": 3} | changes))


def olmo2(**changes: Any) -> Olmo2Config:
    return Olmo2Config(**tiny_shape(**changes))


def stablelm(**changes: Any) -> StableLmConfig:
    return StableLmConfig(**tiny_shape(**{"hidden_size": 64} | changes))


PHI_CASES = {
    "phi3": Case(phi3(sliding_window=WINDOW), {"no window": NONE_WINDOWED, "no rotary": attention(rotary=None)}),
    "phi3-longrope-short-context": Case(
        phi3(rope_parameters=LONGROPE, original_max_position_embeddings=CONTEXT, tie_word_embeddings=True),
        {
            "no scaling": rotary(scaling=None),
            "long factors": scaling(short_factors=tuple(LONG)),
            "whole heads": rotary(dimensions=8, scaling=None),
        },
    ),
    "phi3-longrope-long-context": Case(
        phi3(rope_parameters=LONGROPE, original_max_position_embeddings=ORIGINAL),
        {
            "short factors": scaling(long_factors=tuple(SHORT)),
            "no sharpening": scaling(attention_factor=1.0),
            "other original context": scaling(original_context=16),
        },
    ),
    "phi3-before-transformers-5": Case(
        phi3(original_max_position_embeddings=ORIGINAL),
        {"no scaling": rotary(scaling=None)},
        ("rope_parameters",),
        {
            "rope_theta": 500.0,
            "rope_scaling": {"type": "longrope", "short_factor": [*SHORT, 4.0], "long_factor": [*LONG, 4.0]},
        },
    ),
    "smollm3": Case(
        smollm3(attention_bias=True, mlp_bias=True),
        {
            "no rotary": attention(rotary=None),
            "window": ALL_WINDOWED,
            "no bias": feed_forward(bias=False),
            "usual theta": rotary(theta=10000.0),
        },
    ),
    "smollm3-windows": Case(
        smollm3(use_sliding_window=True, sliding_window=WINDOW, no_rope_layers=[0, 1, 1, 0]),
        {"no window": NONE_WINDOWED},
        ("layer_types",),
    ),
    "smollm3-layer-types-yarn": Case(
        smollm3(
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=ALTERNATING,
            no_rope_layers=[1, 1, 1, 1],
            rope_parameters=YARN,
        ),
        {"no window": NONE_WINDOWED, "no scaling": rotary(scaling=None)},
    ),
    "olmo2": Case(
        olmo2(attention_bias=True, rms_norm_eps=0.1),
        {
            "no query-key norm": attention(query_key_norm=None),
            "no norm after attention": layer_norms(attention_post_norm=None),
            "no norm after feed-forward": layer_norms(feed_forward_post_norm=None),
            "no bias": attention(output_bias=False),
        },
    ),
    "phi": Case(
        phi(qk_layernorm=True),
        {
            "no bias on logits": whole(head_bias=False),
            "whole heads": rotary(dimensions=16),
            "one after the other": layer_norms(parallel=False),
            "no query-key norm": attention(query_key_norm=None),
            "no bias": feed_forward(bias=False),
            "relu": feed_forward(activation=Activation.RELU),
        },
    ),
    "phi-groups-tied": Case(
        phi(
            num_key_value_heads=4,
            tie_word_embeddings=True,
            hidden_act="gelu",
            layer_norm_eps=0.1,
            rope_parameters=rope("linear", factor=4.0, partial_rotary_factor=0.25),
        ),
        {"usual eps": norm_eps(1e-5), "half": rotary(dimensions=8), "no scaling": rotary(scaling=None)},
    ),
    "stablelm": Case(
        stablelm(use_qkv_bias=True),
        {
            "no bias": attention(query_key_value_bias=False),
            "parallel": layer_norms(parallel=True),
            "whole heads": rotary(dimensions=16),
        },
    ),
    "stablelm-parallel": Case(
        stablelm(use_parallel_residual=True, layer_norm_eps=0.1, tie_word_embeddings=True),
        {"one after the other": layer_norms(parallel=False), "usual eps": norm_eps(1e-5)},
    ),
}
