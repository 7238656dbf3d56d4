"""Mixtures of experts with every switch on."""

from __future__ import annotations

import dataclasses
from typing import Any

from family_cases import ALTERNATING, NONE_WINDOWED, YARN, Case
from random_checkpoint import WINDOW, tiny_shape
from spec_faults import Fault, attention, layers, rotary, scaling
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from exporter.decoder.experts import GroupLimit, GroupScore, RouterScore
from exporter.decoder.spec import Activation, ExpertsSpec


def qwen3_moe(**changes: Any) -> Qwen3MoeConfig:
    switches = {"head_dim": 16, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return Qwen3MoeConfig(**tiny_shape(**switches | changes))


def qwen2_moe(**changes: Any) -> Qwen2MoeConfig:
    switches = {"num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
    return Qwen2MoeConfig(**tiny_shape(**switches | {"shared_expert_intermediate_size": 28} | changes))


def mixtral(**changes: Any) -> MixtralConfig:
    return MixtralConfig(**tiny_shape(**{"num_local_experts": 4} | changes))


def experts(**changes: Any) -> Fault:
    """Every mixture with these fields changed."""

    def change(layer: Any) -> Any:
        block = layer.feed_forward
        return dataclasses.replace(block, **changes) if isinstance(block, ExpertsSpec) else block

    return layers(lambda _, layer: dataclasses.replace(layer, feed_forward=change(layer)))


def expert(**changes: Any) -> Fault:
    """Every mixture's experts with these fields changed."""

    def change(layer: Any) -> Any:
        return dataclasses.replace(layer.feed_forward, expert=dataclasses.replace(layer.feed_forward.expert, **changes))

    return layers(lambda _, layer: dataclasses.replace(layer, feed_forward=change(layer)))


def routing(**changes: Any) -> Fault:
    """Every router with these fields changed."""

    def change(layer: Any) -> Any:
        block = layer.feed_forward
        if not isinstance(block, ExpertsSpec):
            return block
        return dataclasses.replace(block, routing=dataclasses.replace(block.routing, **changes))

    return layers(lambda _, layer: dataclasses.replace(layer, feed_forward=change(layer)))


def gpt_oss(**changes: Any) -> GptOssConfig:
    rotary = YARN | {"truncate": False}
    switches = {"head_dim": 16, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": WINDOW}
    return GptOssConfig(**tiny_shape(**switches | {"rope_parameters": rotary, "swiglu_limit": 1.2} | changes))


LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "n_group": 3,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.7,
}
SHARPENED = YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}


def deepseek_v2(**changes: Any) -> DeepseekV2Config:
    return DeepseekV2Config(**tiny_shape(**LATENT | changes))


def deepseek_v3(**changes: Any) -> DeepseekV3Config:
    return DeepseekV3Config(**tiny_shape(**LATENT | changes))


EXPERT_CASES = {
    "deepseek_v2": Case(
        deepseek_v2(topk_method="group_limited_greedy", q_lora_rank=20, attention_bias=True, rope_parameters=SHARPENED),
        {
            "all groups": routing(limit=None),
            "groups by their best two": routing(limit=GroupLimit(3, 2, GroupScore.BEST_TWO)),
            "no shared experts": experts(shared=None),
            "renormalized": routing(renormalized=True),
            "scale of the head": attention(score_scale=20**-0.5),
            "usual sharpening": scaling(attention_factor=None),
            "no output bias": attention(output_bias=False),
        },
    ),
    "deepseek_v2-plain-queries": Case(
        deepseek_v2(q_lora_rank=None, mlp_bias=True, topk_method="greedy", first_k_dense_replace=0),
        {"one expert": routing(chosen=1), "no rotary": attention(score_scale=1.0)},
    ),
    "deepseek_v3": Case(
        deepseek_v3(q_lora_rank=20, rope_parameters=SHARPENED),
        {
            "all groups": routing(limit=None),
            "no selection bias": routing(selection_bias=False),
            "softmax": routing(score=RouterScore.SOFTMAX),
            "as they are": routing(renormalized=False),
        },
    ),
    "deepseek_v3-halves-plain-queries": Case(
        deepseek_v3(q_lora_rank=None, rope_interleave=False, attention_bias=True, norm_topk_prob=False),
        {"renormalized": routing(renormalized=True)},
    ),
    "qwen3_moe": Case(
        qwen3_moe(norm_topk_prob=True, attention_bias=True, rope_parameters=YARN),
        {
            "weights as they are": routing(renormalized=False),
            "one expert": routing(chosen=1),
            "no query-key norm": attention(query_key_norm=None),
            "no scaling": rotary(scaling=None),
        },
    ),
    "qwen3_moe-some-dense-layers-windows": Case(
        qwen3_moe(
            decoder_sparse_step=2,
            mlp_only_layers=[1],
            use_sliding_window=True,
            sliding_window=WINDOW,
            tie_word_embeddings=True,
        ),
        {"renormalized": routing(renormalized=True), "no window": NONE_WINDOWED},
    ),
    "qwen2_moe": Case(
        qwen2_moe(use_sliding_window=True, sliding_window=WINDOW, layer_types=ALTERNATING),
        {
            "no shared expert": experts(shared=None, shared_gate=False),
            "no gate": experts(shared_gate=False),
            "renormalized": routing(renormalized=True),
            "no bias": attention(query_key_value_bias=False),
            "no window": NONE_WINDOWED,
        },
    ),
    "qwen2_moe-dense-layers-no-bias": Case(
        qwen2_moe(decoder_sparse_step=2, qkv_bias=False, norm_topk_prob=True),
        {"as they are": routing(renormalized=False)},
    ),
    "gpt_oss": Case(
        gpt_oss(),
        {
            "no sinks": attention(learned_sinks=False),
            "no window": NONE_WINDOWED,
            "truncated": scaling(truncate=True),
            "no limit": experts(limit=None),
            "silu": expert(activation=Activation.SILU),
            "no expert bias": expert(bias=False),
            "no router bias": routing(bias=False),
            "no offset": experts(up_offset=0.0),
            "no output bias": attention(output_bias=False),
        },
    ),
    "gpt_oss-usual-rotary": Case(
        gpt_oss(attention_bias=False, swiglu_alpha=1.0),
        {"no scaling": rotary(scaling=None)},
        ("rope_parameters", "layer_types", "head_dim"),
        {"head_dim": 16},
    ),
    "olmoe": Case(
        OlmoeConfig(
            **tiny_shape(num_experts=4, num_experts_per_tok=3, norm_topk_prob=True, attention_bias=True, pad_token_id=0)
        ),
        {
            "as they are": routing(renormalized=False),
            "no query-key norm": attention(query_key_norm=None),
            "no bias": attention(query_key_value_bias=False),
        },
    ),
    "mixtral": Case(
        mixtral(sliding_window=WINDOW, num_experts_per_tok=3, rms_norm_eps=0.1),
        {"as they are": routing(renormalized=False), "two experts": routing(chosen=2), "no window": NONE_WINDOWED},
    ),
}
