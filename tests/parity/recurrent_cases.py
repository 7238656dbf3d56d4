"""Families with recurrent layers, with every switch on."""

from __future__ import annotations

import dataclasses
from typing import Any

from family_cases import Case
from random_checkpoint import VOCABULARY, tiny_shape
from spec_faults import Fault, attention, convolution, layers, norm_eps, recurrence, rotary
from transformers import (
    BambaConfig,
    FalconH1Config,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    Mamba2Config,
    MambaConfig,
    Zamba2Config,
)

from exporter.decoder.spec import Activation, RotarySpec

HYBRID = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 6,
    "mamba_d_conv": 3,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "mamba_proj_bias": True,
}
"""Two groups of four heads; 64 inner channels."""
SCANNED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "state_size": 6,
    "conv_kernel": 3,
    "use_bias": True,
}
"""No attention at all."""
SMALL = 0.05
"""Blocks without residuals around them multiply the rounding of float32: against float64, transformers errs as much as the decoder."""

ALTERNATING = ["linear_attention", "full_attention"] * 2


def lfm2(**changes: Any) -> Lfm2Config:
    switches = {
        "conv_bias": True,
        "layer_types": ["conv", "full_attention"] * 2,
        "block_multiple_of": 4,
        "block_ffn_dim_multiplier": 1.3,
    }
    return Lfm2Config(**tiny_shape(**switches | changes))


def mamba(**changes: Any) -> MambaConfig:
    switches = SCANNED | {"time_step_rank": 5, "tie_word_embeddings": False}
    return MambaConfig(**switches | changes)


def mamba2(**changes: Any) -> Mamba2Config:
    switches = SCANNED | {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}
    return Mamba2Config(**switches | changes)


def bamba(**changes: Any) -> BambaConfig:
    switches = HYBRID | {"attn_layer_indices": [1, 3], "attention_bias": True, "mlp_bias": True}
    return BambaConfig(**tiny_shape(**switches | changes))


def jamba(**changes: Any) -> JambaConfig:
    switches = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 0,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 6,
        "mamba_d_conv": 3,
        "mamba_dt_rank": 5,
        "mamba_proj_bias": True,
    }
    return JambaConfig(**tiny_shape(**switches | changes))


def granite_hybrid(**changes: Any) -> GraniteMoeHybridConfig:
    switches = HYBRID | {
        "layer_types": ALTERNATING,
        "num_local_experts": 0,
        "shared_intermediate_size": 44,
        "attention_bias": True,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.2,
        "logits_scaling": 0.7,
        "position_embedding_type": "rope",
    }
    return GraniteMoeHybridConfig(**tiny_shape(**switches | changes))


def falcon_h1(**changes: Any) -> FalconH1Config:
    multipliers = {
        "lm_head_multiplier": 1.7,
        "embedding_multiplier": 2.0,
        "mlp_multipliers": [0.6, 1.4],
        "key_multiplier": 0.5,
        "attention_in_multiplier": 1.3,
        "attention_out_multiplier": 0.8,
        "ssm_multipliers": [0.5, 1.5, 0.7, 1.2, 0.9],
        "ssm_in_multiplier": 1.25,
        "ssm_out_multiplier": 0.6,
    }
    switches = {"mamba_d_ssm": 48, "mamba_d_head": 6, "mamba_rms_norm": True, "projectors_bias": True}
    biases = {"attention_bias": True, "mlp_bias": True}
    return FalconH1Config(**tiny_shape(**HYBRID | multipliers | switches | biases | changes))


def zamba2(**changes: Any) -> Zamba2Config:
    switches = {
        "num_hidden_layers": 5,
        "num_key_value_heads": 4,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid", "linear_attention"],
        "num_mem_blocks": 2,
        "adapter_rank": 5,
        "use_shared_attention_adapter": True,
        "use_mem_rope": True,
        "mamba_d_state": 6,
        "mamba_d_conv": 3,
        "mamba_ngroups": 2,
        "n_mamba_heads": 8,
        "add_bias_linear": True,
        "chunk_size": 8,
        "tie_word_embeddings": True,
    }
    return Zamba2Config(**tiny_shape(**switches | changes))


def without(**changes: None) -> Fault:
    """Every layer without one of its mixers."""
    return layers(lambda _, layer: dataclasses.replace(layer, **changes))


NO_BIAS = {"no bias": recurrence(bias=False), "no bias of the convolution": convolution(bias=False)}
LONGER_STEPS = {"no step shorter than one": recurrence(shortest_step=1.0)}

RECURRENT_CASES = {
    "lfm2": Case(
        lfm2(),
        NO_BIAS | {"no query-key norm": attention(query_key_norm=None), "usual theta of others": rotary(theta=10000.0)},
    ),
    "lfm2-first-release": Case(
        lfm2(conv_bias=False),
        {"usual theta": rotary(theta=1000000.0)},
        ("layer_types", "tie_word_embeddings", "intermediate_size", "rope_parameters"),
        {"full_attn_idxs": [1, 3], "tie_embedding": True, "block_ff_dim": 44, "rope_theta": 1000.0},
    ),
    "mamba": Case(mamba(), NO_BIAS),
    "mamba-tied": Case(
        mamba(tie_word_embeddings=True, use_bias=False, use_conv_bias=False, layer_norm_epsilon=0.1),
        {"usual eps": norm_eps(1e-5)},
    ),
    "mamba2": Case(
        mamba2(layer_norm_epsilon=0.1),
        NO_BIAS
        | LONGER_STEPS
        | {
            "no gated norm": recurrence(norm_eps=None),
            "usual eps": recurrence(norm_eps=1e-5),
            "gate after the norm": recurrence(norm_before_gate=True),
        },
    ),
    "mamba2-one-group": Case(mamba2(n_groups=1, use_conv_bias=False), {"no gated norm": recurrence(norm_eps=None)}),
    "bamba": Case(
        bamba(),
        NO_BIAS
        | LONGER_STEPS
        | {"whole heads rotated": rotary(dimensions=8), "no gated norm": recurrence(norm_eps=None)},
    ),
    "jamba": Case(
        jamba(),
        NO_BIAS | {"parameters not normalized": recurrence(parameter_norm_eps=None)},
    ),
    "jamba-dense": Case(
        jamba(num_experts=1, mamba_conv_bias=False, tie_word_embeddings=True),
        {"parameters not normalized": recurrence(parameter_norm_eps=None)},
        embedding=0.2,
    ),
    "granitemoehybrid": Case(
        granite_hybrid(),
        NO_BIAS | {"no rotary": attention(rotary=None), "scale of the head": attention(score_scale=8**-0.5)},
    ),
    "granitemoehybrid-no-positions": Case(
        granite_hybrid(position_embedding_type="nope", tie_word_embeddings=True),
        NO_BIAS,
        ("layer_types",),
        {"layers_block_type": ["mamba", "attention"] * 2},
    ),
    "falcon_h1": Case(
        falcon_h1(),
        NO_BIAS
        | {
            "no bias of the output": recurrence(output_bias=False),
            "gate before the norm": recurrence(norm_before_gate=False),
            "no gated norm": recurrence(norm_eps=None),
            "no attention": without(attention=None),
            "no recurrence": without(recurrence=None),
        },
    ),
    "falcon_h1-gate-before-norm": Case(
        falcon_h1(mamba_norm_before_gate=False), {"gate after the norm": recurrence(norm_before_gate=True)}
    ),
    "zamba2": Case(
        zamba2(),
        NO_BIAS
        | {
            "no rotary": attention(rotary=None),
            "scale of the head": attention(score_scale=16**-0.5),
            "one block for all": layers(
                lambda _, layer: dataclasses.replace(
                    layer, shared=layer.shared and dataclasses.replace(layer.shared, number=0)
                )
            ),
            "usual activation": layers(
                lambda _, layer: dataclasses.replace(
                    layer,
                    feed_forward=layer.feed_forward
                    and dataclasses.replace(layer.feed_forward, activation=Activation.SILU),
                )
            ),
        },
        changes={"layers_block_type": ["mamba", "hybrid", "hybrid", "hybrid", "mamba"]},
        embedding=SMALL,
    ),
    "zamba2-no-adapters": Case(
        zamba2(use_shared_attention_adapter=False, use_mem_rope=False, num_mem_blocks=1, add_bias_linear=False),
        {"rotary": attention(rotary=RotarySpec(16, 10000.0))},
        embedding=SMALL,
    ),
    "falcon_h1-no-norm": Case(
        falcon_h1(
            mamba_rms_norm=False, mamba_d_ssm=None, mamba_d_head=8, tie_word_embeddings=True, lm_head_multiplier=0.2
        ),
        {"no attention": without(attention=None)},
    ),
}

RECURRENT_FAMILIES = ("lfm2", "mamba", "mamba2", "bamba", "jamba", "granitemoehybrid", "falcon_h1", "zamba2")
"""Their cases with most switches on are named as they are."""
