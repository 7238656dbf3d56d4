"""Granite and the Gemmas with every switch on."""

from __future__ import annotations

import dataclasses
from typing import Any

from family_cases import ALTERNATING, NONE_WINDOWED, Case, rope
from random_checkpoint import WINDOW, tiny_shape
from spec_faults import Fault, attention, feed_forward, layers, rotary, windows
from transformers import Gemma2Config, Gemma3TextConfig, GemmaConfig, GraniteConfig

from exporter.decoder.spec import Activation, NormSpec


def granite(**changes: Any) -> GraniteConfig:
    multipliers = {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.2,
        "logits_scaling": 1.7,
    }
    return GraniteConfig(**tiny_shape(**multipliers | changes))


def gemma(**changes: Any) -> GemmaConfig:
    return GemmaConfig(**tiny_shape(**{"head_dim": 16} | changes))


def gemma2(**changes: Any) -> Gemma2Config:
    switches = {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 40,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 20.0,
    }
    return Gemma2Config(**tiny_shape(**switches | changes))


def gemma3(**changes: Any) -> Gemma3TextConfig:
    switches = {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 4, "sliding_window_pattern": 3}
    return Gemma3TextConfig(**tiny_shape(**switches | changes))


def layer_norms(**changes: Any) -> Fault:
    return layers(lambda _, layer: dataclasses.replace(layer, **changes))


def whole(**changes: Any) -> Fault:
    return lambda spec: dataclasses.replace(spec, **changes)


GEMMA2_FAULTS = {
    "no window": NONE_WINDOWED,
    "windows in the other layers": windows(None, WINDOW, None, WINDOW),
    "no cap on scores": attention(score_cap=None),
    "no cap on logits": whole(logits_cap=None),
    "scale of the head": attention(score_scale=16**-0.5),
    "no norm after attention": layer_norms(attention_post_norm=None),
    "no norm after feed-forward": layer_norms(feed_forward_post_norm=None),
    "no norm before feed-forward": layer_norms(feed_forward_norm=None),
}

GEMMA_CASES = {
    "granite": Case(
        granite(attention_bias=True, mlp_bias=True),
        {"scale of the head": attention(score_scale=8**-0.5), "no bias": feed_forward(bias=False)},
    ),
    "granite-tied": Case(granite(tie_word_embeddings=True), {"scale of the head": attention(score_scale=8**-0.5)}),
    "gemma": Case(gemma(num_key_value_heads=1), {"scale of hidden/heads": attention(score_scale=8**-0.5)}),
    "gemma-untied-bias": Case(
        gemma(tie_word_embeddings=False, attention_bias=True), {"no bias": attention(query_key_value_bias=False)}
    ),
    "gemma-first-release": Case(
        gemma(), {"silu": feed_forward(activation=Activation.SILU)}, changes={"hidden_act": "gelu"}
    ),
    "gemma2": Case(gemma2(), GEMMA2_FAULTS),
    "gemma2-before-layer-types": Case(gemma2(), GEMMA2_FAULTS, ("layer_types",)),
    "gemma2-no-caps-bias": Case(
        gemma2(
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            attention_bias=True,
            layer_types=ALTERNATING,
            tie_word_embeddings=False,
        ),
        {
            "cap on scores": attention(score_cap=2.0),
            "cap on logits": whole(logits_cap=20.0),
            "no bias": attention(output_bias=False),
        },
    ),
    "gemma3_text": Case(
        gemma3(final_logit_softcapping=20.0),
        {
            "no window": NONE_WINDOWED,
            "one base": rotary(theta=10000.0),
            "no cap on logits": whole(logits_cap=None),
            "no query-key norm": attention(query_key_norm=None),
            "query-key eps": attention(query_key_norm=NormSpec(0.5)),
            "no norm after attention": layer_norms(attention_post_norm=None),
        },
    ),
    "gemma3_text-before-transformers-5": Case(
        gemma3(
            rope_parameters={
                "full_attention": rope("linear", rope_theta=50000.0, factor=8.0),
                "sliding_attention": rope("default", rope_theta=500.0),
            }
        ),
        {"no scaling": rotary(scaling=None), "one base": rotary(theta=500.0)},
        ("layer_types", "rope_parameters"),
        {
            "sliding_window_pattern": 3,
            "rope_theta": 50000.0,
            "rope_local_base_freq": 500.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}
