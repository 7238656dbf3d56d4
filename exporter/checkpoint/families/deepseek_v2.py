"""DeepSeek-V2: latent attention, experts by a softmax over all, chosen from the best groups."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.experts import read_routing
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.latent import group_limit, latent_decoder, latent_weights
from exporter.checkpoint.weight_map import WeightMap
from exporter.decoder.experts import GroupScore
from exporter.decoder.spec import DecoderSpec


def decoder_spec(config: Config) -> DecoderSpec:
    config.refuse("norm_topk_prob", False)
    config.refuse("moe_layer_freq", 1)
    method = config.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise config.fault("topk_method", f"{method!r} is not supported")
    routing = read_routing(config, "n_routed_experts", 6)
    if method == "group_limited_greedy":
        routing = routing.limited(group_limit(config, routing.experts, GroupScore.BEST))
    return latent_decoder(config, "deepseek_v2", routing, config.flag("mlp_bias", False))


def weights(config: Config) -> WeightMap:
    return latent_weights(config, interleaved=True)


PUBLISHED = Published(
    "DeepSeek-V2-Lite",
    {
        "vocab_size": 102400,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "norm_topk_prob": False,
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "max_position_embeddings": 163840,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
        },
        "tie_word_embeddings": False,
    },
    15_706_484_224,
)
FAMILIES.add("deepseek_v2", Family("deepseek_v2", decoder_spec, PUBLISHED, weights))
