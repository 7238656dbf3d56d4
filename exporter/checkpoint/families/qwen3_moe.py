"""Qwen3's mixtures of experts: Qwen3's attention, and in most layers experts chosen by a softmax over all."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import dense_decoder, layer_count
from exporter.checkpoint.experts import gated_expert, qwen_weights, read_routing, sparse_layers
from exporter.checkpoint.families.qwen3 import attention_traits
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import WeightMap
from exporter.decoder.spec import DecoderSpec, ExpertsSpec


def decoder_spec(config: Config) -> DecoderSpec:
    count = "num_local_experts" if "num_experts" not in config.values else "num_experts"
    routing = read_routing(config, count, 8, renormalized=config.flag("norm_topk_prob", False))
    block = ExpertsSpec(routing, gated_expert(config, "moe_intermediate_size"))
    window = config.optional_integer("sliding_window") if config.flag("use_sliding_window", False) else None
    traits = attention_traits(config).but(windows=(window,) * layer_count(config), experts=sparse_layers(config, block))
    return dense_decoder(config, "qwen3_moe", traits)


def weights(config: Config) -> WeightMap:
    return qwen_weights()


PUBLISHED = Published(
    "Qwen3-30B-A3B",
    {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    },
    30_532_122_624,
)
FAMILIES.add("qwen3_moe", Family("qwen3_moe", decoder_spec, PUBLISHED, weights))
