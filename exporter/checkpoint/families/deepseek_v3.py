"""DeepSeek-V3 and R1: latent attention, experts by sigmoids and a bias of selection. Layers that predict further tokens are left out.

Its published files hold FP8, which is refused; read are checkpoints whose tensors are floats.
"""

from dataclasses import replace

from exporter.checkpoint.config import Config
from exporter.checkpoint.experts import read_routing
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.latent import group_limit, latent_decoder, latent_weights
from exporter.checkpoint.weight_map import WeightMap
from exporter.decoder.experts import GroupScore, RouterScore
from exporter.decoder.spec import DecoderSpec


def decoder_spec(config: Config) -> DecoderSpec:
    config.refuse("moe_layer_freq", 1)
    config.refuse("topk_method", "noaux_tc")
    config.refuse("scoring_func", "sigmoid")
    renormalized = config.flag("norm_topk_prob", True)
    routing = read_routing(config, "n_routed_experts", 8, RouterScore.SIGMOID, renormalized)
    usual = config.defaulting(n_group=8, topk_group=4, first_k_dense_replace=3)
    limit = group_limit(usual, routing.experts, GroupScore.BEST_TWO)
    return latent_decoder(usual, "deepseek_v3", replace(routing, selection_bias=True).limited(limit), mlp_bias=False)


def weights(config: Config) -> WeightMap:
    usual = config.defaulting(routed_scaling_factor=2.5)
    return latent_weights(usual, config.flag("rope_interleave", True))


PUBLISHED = Published(
    "DeepSeek-V3",
    {
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "max_position_embeddings": 163840,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
        },
        "tie_word_embeddings": False,
    },
    671_026_419_200,
)
FAMILIES.add("deepseek_v3", Family("deepseek_v3", decoder_spec, PUBLISHED, weights))
