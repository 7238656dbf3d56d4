"""Configs of families with recurrent layers whose fields all differ from their defaults, and the fields that may be absent."""

from __future__ import annotations

import copy

from config_fields import MULTIPLIERS, SHAPE, unusual
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

ATTENDED = unusual("hidden_act")
ROPE = {"rope_parameters": unusual()["rope_parameters"]}
CONVOLVED = ROPE | {
    "norm_eps": 1e-3,
    "tie_word_embeddings": False,
    "conv_bias": True,
    "conv_L_cache": 5,
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.5,
    "full_attn_idxs": [1],
}
SCANNED = {
    "vocab_size": 101,
    "hidden_size": 96,
    "state_size": 7,
    "num_hidden_layers": 3,
    "layer_norm_epsilon": 1e-3,
    "expand": 3,
    "conv_kernel": 5,
    "use_bias": True,
    "use_conv_bias": False,
}
DUAL = SCANNED | {"num_heads": 24, "head_dim": 12, "n_groups": 3, "tie_word_embeddings": True}
GROUPED = {
    "mamba_n_heads": 24,
    "mamba_d_head": 12,
    "mamba_n_groups": 3,
    "mamba_d_state": 7,
    "mamba_d_conv": 5,
    "mamba_expand": 3,
    "mamba_conv_bias": False,
    "mamba_proj_bias": True,
    "attention_bias": True,
}
SCALED = {
    "embedding_multiplier": 2.0,
    "lm_head_multiplier": 3.0,
    "mlp_multipliers": [0.5, 0.25],
    "key_multiplier": 0.5,
    "attention_in_multiplier": 1.5,
    "attention_out_multiplier": 0.75,
    "ssm_multipliers": [0.5, 1.5, 0.25, 2.0, 3.0],
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.625,
}
SIDE_BY_SIDE = (
    GROUPED
    | SCALED
    | {
        "mamba_d_ssm": 288,
        "mamba_rms_norm": True,
        "mamba_norm_before_gate": False,
        "projectors_bias": True,
        "mlp_bias": True,
    }
)
SPARSE = {
    "num_experts": 3,
    "num_experts_per_tok": 1,
    "expert_layer_period": 3,
    "expert_layer_offset": 0,
    "attn_layer_period": 2,
    "attn_layer_offset": 0,
    "mamba_d_state": 7,
    "mamba_d_conv": 5,
    "mamba_expand": 3,
    "mamba_dt_rank": 9,
    "mamba_conv_bias": False,
    "mamba_proj_bias": True,
}
LENT = {
    "layers_block_type": ["hybrid", "linear_attention", "hybrid"],
    "mamba_d_state": 7,
    "mamba_d_conv": 5,
    "mamba_expand": 3,
    "mamba_ngroups": 2,
    "n_mamba_heads": 12,
    "add_bias_linear": True,
    "num_mem_blocks": 2,
    "use_shared_attention_adapter": True,
    "adapter_rank": 9,
    "use_mem_rope": True,
    "time_step_min": 0.01,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-3,
}
HYBRID = ATTENDED | GROUPED
GRANITE_HYBRID = (
    HYBRID
    | MULTIPLIERS
    | {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 56,
        "position_embedding_type": "rope",
    }
)
WITHOUT_ROTARY = unusual("hidden_act", "rope_parameters")
# transformers writes Bamba's rotated share into the dictionary that it is given
RECURRENT_CONFIGS = {
    "lfm2": Lfm2Config(**SHAPE, **CONVOLVED),
    "mamba": MambaConfig(**SCANNED, time_step_rank=9, tie_word_embeddings=False),
    "mamba2": Mamba2Config(**DUAL),
    "bamba": BambaConfig(**SHAPE, **copy.deepcopy(HYBRID), mlp_bias=True, attn_layer_indices=[1]),
    "jamba": JambaConfig(**SHAPE, **WITHOUT_ROTARY, **SPARSE),
    "granitemoehybrid": GraniteMoeHybridConfig(**SHAPE, **GRANITE_HYBRID),
    "falcon_h1": FalconH1Config(**SHAPE, **ATTENDED, **SIDE_BY_SIDE),
    "zamba2": Zamba2Config(**SHAPE | {"num_key_value_heads": 12}, **LENT),
}

RECURRENT_OPTIONAL = {
    "lfm2": (*CONVOLVED, "num_key_value_heads", "max_position_embeddings", "intermediate_size"),
    "mamba": (*(SCANNED.keys() - {"vocab_size", "num_hidden_layers"}), "time_step_rank", "tie_word_embeddings"),
    "mamba2": tuple(DUAL.keys() - {"vocab_size", "num_hidden_layers"}),
    "bamba": (
        *(HYBRID.keys() - {"mamba_d_head"}),
        "mlp_bias",
        "attn_layer_indices",
        "num_key_value_heads",
        "max_position_embeddings",
    ),
    "jamba": (*WITHOUT_ROTARY, *SPARSE, "num_key_value_heads", "max_position_embeddings", "intermediate_size"),
    "granitemoehybrid": (*(GRANITE_HYBRID.keys() - {"mamba_d_head"}), "num_key_value_heads", "max_position_embeddings"),
    "falcon_h1": (*ATTENDED, *(SIDE_BY_SIDE.keys() - {"mamba_d_head", "mamba_expand"}), "num_key_value_heads"),
    "zamba2": (*LENT, "max_position_embeddings", "intermediate_size"),
}
