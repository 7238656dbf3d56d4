"""Configs of mixtures whose fields all differ from their defaults, and the fields that may be absent."""

from __future__ import annotations

from config_fields import SHAPE, unusual
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

UNUSUAL = unusual()
SPARSE = {"decoder_sparse_step": 2, "moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3}
SPARSE |= {"norm_topk_prob": True}
QWEN2 = SPARSE | {"qkv_bias": False, "shared_expert_intermediate_size": 28}
QWEN3 = SPARSE | {"attention_bias": True, "head_dim": 20, "use_sliding_window": True, "sliding_window": 77}
MIXTRAL = {"num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 77, "head_dim": 20}
MANY = {"num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True, "attention_bias": True}
CLAMPED = {"head_dim": 20, "num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 77}
CLAMPED |= {"attention_bias": False, "swiglu_alpha": 1.0, "swiglu_limit": 3.0}
LATENT = {
    "num_key_value_heads": 12,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 10,
    "v_head_dim": 14,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 3,
    "n_routed_experts": 18,
    "n_shared_experts": 3,
    "routed_scaling_factor": 1.7,
    "attention_bias": True,
}
LIMITED = LATENT | {"topk_method": "group_limited_greedy", "mlp_bias": True}
SIGMOIDS = LATENT | {"norm_topk_prob": False, "rope_interleave": False}
UNTIED = unusual("hidden_act")

EXPERT_CONFIGS = {
    "qwen2_moe": Qwen2MoeConfig(**SHAPE, **UNUSUAL, **QWEN2),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, **UNUSUAL, **QWEN3),
    "olmoe": OlmoeConfig(**SHAPE, **UNUSUAL, **MANY, pad_token_id=0),
    "mixtral": MixtralConfig(**SHAPE, **UNUSUAL, **MIXTRAL),
    "gpt_oss": GptOssConfig(**SHAPE, **UNTIED, **CLAMPED),
    "deepseek_v2": DeepseekV2Config(**SHAPE | UNUSUAL | LIMITED),
    "deepseek_v3": DeepseekV3Config(**SHAPE | UNUSUAL | SIGMOIDS),
}
EXPERT_OPTIONAL = {
    "qwen2_moe": (*UNUSUAL, *QWEN2, "num_key_value_heads"),
    "qwen3_moe": (*UNUSUAL, *(QWEN3.keys() - {"num_experts"}), "num_key_value_heads"),
    "olmoe": (*UNUSUAL, *MANY, "num_key_value_heads"),
    "mixtral": (*UNUSUAL, *MIXTRAL, "num_key_value_heads"),
    "gpt_oss": (*UNTIED, *CLAMPED, "num_key_value_heads"),
    "deepseek_v2": (*UNUSUAL, *(LIMITED.keys() - {"num_key_value_heads"})),
    "deepseek_v3": (*UNUSUAL, *(SIGMOIDS.keys() - {"num_key_value_heads"})),
}
