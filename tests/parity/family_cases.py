"""Configs of every family with each switch on, and for each switch the faults that must show in the logits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from random_checkpoint import WINDOW, tiny_shape
from spec_faults import Fault, attention, feed_forward, norm_eps, rotary, scaling, windows
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from exporter.decoder.spec import Activation, NormSpec


@dataclass(frozen=True)
class Case:
    """A config with some switches on, edits of the saved config.json, and the faults that must show in the logits."""

    config: PreTrainedConfig
    faults: dict[str, Fault]
    removed: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    implementation: str = "eager"
    """Which of transformers' attentions is the reference."""
    embedding: float = 1.0
    """See `random_model`."""


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0} | parameters


ORIGINAL = 32
"""Original context of the stretched rotary embeddings; the test runs far beyond it."""
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=ORIGINAL)
ALTERNATING = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
ALL_WINDOWED, NONE_WINDOWED = windows(*[WINDOW] * 4), windows(*[None] * 4)


def llama(**changes: Any) -> LlamaConfig:
    return LlamaConfig(**tiny_shape(**changes))


def mistral(**changes: Any) -> MistralConfig:
    return MistralConfig(**tiny_shape(**changes))


def qwen2(**changes: Any) -> Qwen2Config:
    return Qwen2Config(**tiny_shape(**changes))


def qwen3(**changes: Any) -> Qwen3Config:
    return Qwen3Config(**tiny_shape(**{"head_dim": 16} | changes))


CASES = {
    "llama": Case(llama(), {"no rotary": attention(rotary=None), "window": ALL_WINDOWED}),
    "llama-one-key-value-head": Case(llama(num_key_value_heads=1), {"no rotary": attention(rotary=None)}),
    "llama-no-groups": Case(llama(num_key_value_heads=None), {"no rotary": attention(rotary=None)}),
    "llama-theta": Case(
        llama(rope_parameters=rope("default", rope_theta=500000.0)), {"usual theta": rotary(theta=10000.0)}
    ),
    "llama-theta-outside": Case(
        llama(), {"usual theta": rotary(theta=10000.0)}, ("rope_parameters",), {"rope_theta": 500000.0}
    ),
    "llama-attention-bias": Case(
        llama(attention_bias=True),
        {"no input bias": attention(query_key_value_bias=False), "no output bias": attention(output_bias=False)},
    ),
    "llama-mlp-bias": Case(llama(mlp_bias=True), {"no bias": feed_forward(bias=False)}),
    "llama-linear": Case(
        llama(rope_parameters=rope("linear", factor=4.0)),
        {"no scaling": rotary(scaling=None), "other factor": scaling(factor=2.0)},
    ),
    "llama-llama3": Case(
        llama(
            head_dim=32,
            rope_parameters=rope(
                "llama3",
                factor=4.0,
                original_max_position_embeddings=ORIGINAL,
                low_freq_factor=0.5,
                high_freq_factor=3.0,
            ),
        ),
        {
            "no scaling": rotary(scaling=None),
            "other factor": scaling(factor=2.0),
            "other original context": scaling(original_context=128),
            "usual low band": scaling(low_frequency_factor=1.0),
            "usual high band": scaling(high_frequency_factor=4.0),
        },
    ),
    "llama-yarn": Case(
        llama(head_dim=32, rope_parameters=YARN),
        {
            "no scaling": rotary(scaling=None),
            "other original context": scaling(original_context=128),
            "no sharpening": scaling(attention_factor=1.0),
        },
    ),
    "llama-yarn-all-parameters": Case(
        llama(head_dim=32, rope_parameters=YARN | {"beta_fast": 2.0, "beta_slow": 0.5, "attention_factor": 0.7}),
        {
            "usual beta_fast": scaling(beta_fast=32.0),
            "usual beta_slow": scaling(beta_slow=1.0),
            "usual sharpening": scaling(attention_factor=None),
        },
    ),
    "llama-yarn-before-transformers-5": Case(
        llama(head_dim=32),
        {"no scaling": rotary(scaling=None), "usual theta": rotary(theta=10000.0)},
        ("rope_parameters",),
        {
            "rope_theta": 1000.0,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
        },
    ),
    "llama-untied": Case(llama(), {"tied": lambda spec: dataclasses.replace(spec, tied_embedding=True)}),
    "llama-tied": Case(llama(tie_word_embeddings=True), {"no rotary": attention(rotary=None)}),
    "llama-head-dim": Case(
        llama(head_dim=16),
        {"scale of hidden/heads": attention(score_scale=8**-0.5), "half rotated": rotary(dimensions=8)},
    ),
    "llama-norm-eps": Case(llama(rms_norm_eps=0.1), {"usual eps": norm_eps(1e-6)}),
    "llama-gelu": Case(llama(hidden_act="gelu"), {"silu": feed_forward(activation=Activation.SILU)}),
    "llama-gelu-new": Case(llama(hidden_act="gelu_new"), {"silu": feed_forward(activation=Activation.SILU)}),
    "llama-relu": Case(llama(hidden_act="relu"), {"gelu": feed_forward(activation=Activation.GELU)}),
    "mistral": Case(mistral(sliding_window=None), {"window": ALL_WINDOWED}),
    "mistral-window": Case(
        mistral(sliding_window=WINDOW, head_dim=16),
        {
            "no window": NONE_WINDOWED,
            "one less": windows(*[WINDOW - 1] * 4),
            "one more": windows(*[WINDOW + 1] * 4),
        },
    ),
    "mistral-layer-types": Case(
        mistral(sliding_window=WINDOW),
        {"no window": NONE_WINDOWED, "window everywhere": ALL_WINDOWED},
        changes={"layer_types": ALTERNATING},
    ),
    "qwen2": Case(qwen2(), {"no bias": attention(query_key_value_bias=False), "window": ALL_WINDOWED}),
    "qwen2-upper-layers": Case(
        qwen2(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2, tie_word_embeddings=True),
        {
            "no window": NONE_WINDOWED,
            "window everywhere": ALL_WINDOWED,
            "one layer lower": windows(None, WINDOW, WINDOW, WINDOW),
            "lower layers": windows(WINDOW, WINDOW, None, None),
        },
        ("layer_types",),
    ),
    "qwen2-window-switched-off": Case(
        qwen2(),
        {"window": ALL_WINDOWED},
        ("layer_types",),
        {"use_sliding_window": False, "sliding_window": WINDOW, "max_window_layers": 0},
    ),
    "qwen2-layer-types": Case(
        qwen2(use_sliding_window=True, sliding_window=WINDOW, layer_types=ALTERNATING, head_dim=16),
        {"no window": NONE_WINDOWED, "window everywhere": ALL_WINDOWED, "one more": windows(None, 17, 17, None)},
    ),
    "qwen2-yarn": Case(qwen2(rope_parameters=YARN), {"no scaling": rotary(scaling=None)}),
    "qwen3": Case(
        qwen3(rms_norm_eps=0.1),
        {
            "no query-key norm": attention(query_key_norm=None),
            "usual query-key eps": attention(query_key_norm=NormSpec(1e-6)),
            "usual eps": norm_eps(1e-6),
        },
    ),
    "qwen3-upper-layers": Case(
        qwen3(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=3),
        {"no window": NONE_WINDOWED, "window everywhere": ALL_WINDOWED},
        ("layer_types",),
    ),
    "qwen3-layer-types-bias": Case(
        qwen3(attention_bias=True, use_sliding_window=True, sliding_window=WINDOW, layer_types=ALTERNATING),
        {
            "no window": NONE_WINDOWED,
            "window everywhere": ALL_WINDOWED,
            "one less": windows(None, 15, 15, None),
            "no input bias": attention(query_key_value_bias=False),
            "no output bias": attention(output_bias=False),
            "no query-key norm": attention(query_key_norm=None),
        },
    ),
    "qwen3-tied-yarn": Case(
        qwen3(tie_word_embeddings=True, rope_parameters=YARN), {"no scaling": rotary(scaling=None)}
    ),
}
