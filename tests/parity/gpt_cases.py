"""GPT-2, Falcon, MPT and BLOOM with every switch on."""

from __future__ import annotations

from typing import Any

from family_cases import ALL_WINDOWED, Case, rope
from gemma_cases import layer_norms, whole
from random_checkpoint import CONTEXT, VOCABULARY
from spec_faults import attention, feed_forward, norm_eps, rotary
from transformers import BloomConfig, FalconConfig, GPT2Config, GPTNeoXConfig, MptConfig

from exporter.decoder.spec import Activation


def gpt2(**changes: Any) -> GPT2Config:
    shape = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 4, "n_head": 4}
    return GPT2Config(**shape | changes)


def falcon(**changes: Any) -> FalconConfig:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    return FalconConfig(**shape | {"max_position_embeddings": CONTEXT} | changes)


def gpt_neox(**changes: Any) -> GPTNeoXConfig:
    shape = {"hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 4, "num_attention_heads": 4}
    return GPTNeoXConfig(**{"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT} | shape | changes)


def mpt(**changes: Any) -> MptConfig:
    shape = {"vocab_size": VOCABULARY, "d_model": 48, "n_layers": 4, "n_heads": 6, "max_seq_len": CONTEXT}
    return MptConfig(**shape | changes)


def bloom(**changes: Any) -> BloomConfig:
    shape = {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 4, "n_head": 6, "seq_length": CONTEXT}
    return BloomConfig(**shape | changes)


GPT_CASES = {
    "gpt2": Case(
        gpt2(n_inner=56, scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=0.1),
        {
            "usual eps": norm_eps(1e-5),
            "equal scales": attention(score_scale=8**-0.5),
            "no positions": whole(learned_positions=0),
            "exact gelu is near, relu is not": feed_forward(activation=Activation.RELU),
            "no bias": attention(query_key_value_bias=False),
        },
    ),
    "gpt2-untied-relu": Case(
        gpt2(tie_word_embeddings=False, activation_function="relu", scale_attn_weights=False),
        {"silu": feed_forward(activation=Activation.SILU), "scaled": attention(score_scale=8**-0.5)},
    ),
    "falcon": Case(
        falcon(bias=True, ffn_hidden_size=56),
        {
            "one after the other": layer_norms(parallel=False),
            "no rotary": attention(rotary=None),
            "window": ALL_WINDOWED,
            "no bias": feed_forward(bias=False),
        },
    ),
    "falcon-new-architecture": Case(
        falcon(
            num_kv_heads=2,
            new_decoder_architecture=True,
            tie_word_embeddings=False,
            rope_parameters=rope("linear", rope_theta=500.0, factor=4.0),
        ),
        {"shared norm": layer_norms(feed_forward_norm=None), "no scaling": rotary(scaling=None)},
    ),
    "falcon-new-architecture-one-norm": Case(
        falcon(num_kv_heads=2, new_decoder_architecture=True, num_ln_in_parallel_attn=1),
        {"one after the other": layer_norms(parallel=False)},
    ),
    "falcon-sequential-alibi": Case(
        falcon(alibi=True, parallel_attn=False, multi_query=False, bias=True, activation="relu"),
        {"no slopes": attention(distance_slopes=None), "parallel": layer_norms(parallel=True)},
        implementation="sdpa",  # the other one adds what distance makes of the scores twice
    ),
    "gpt_neox": Case(
        gpt_neox(),
        {
            "one after the other": layer_norms(parallel=False),
            "whole heads": rotary(dimensions=16),
            "shared norm": layer_norms(feed_forward_norm=None),
            "no bias": attention(query_key_value_bias=False),
        },
    ),
    "gpt_neox-sequential-former-names": Case(
        gpt_neox(use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new", layer_norm_eps=0.1),
        {"parallel": layer_norms(parallel=True), "quarter": rotary(dimensions=4), "usual eps": norm_eps(1e-5)},
        ("rope_parameters",),
        {"rotary_pct": 0.5, "rotary_emb_base": 500},
    ),
    "mpt": Case(
        mpt(attn_config={"softmax_scale": 0.5}, layer_norm_epsilon=0.1),
        {
            "no slopes": attention(distance_slopes=None),
            "equal slopes": attention(distance_slopes=(0.25,) * 6),
            "scale of the head": attention(score_scale=8**-0.5),
            "usual eps": norm_eps(1e-5),
        },
    ),
    "bloom": Case(
        bloom(),
        {
            "no slopes": attention(distance_slopes=None),
            "equal slopes": attention(distance_slopes=(0.25,) * 6),
            "no norm of embeddings": whole(embedding_norm=None),
            "no bias": feed_forward(bias=False),
        },
    ),
    "bloom-former-names": Case(
        bloom(tie_word_embeddings=False),
        {"no slopes": attention(distance_slopes=None)},
        ("hidden_size", "n_head"),
        {"n_embed": 48, "num_attention_heads": 6},
    ),
}
