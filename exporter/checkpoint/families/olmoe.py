"""OLMoE: norms of whole queries and keys, every block a mixture of many small experts."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention, layer_count
from exporter.checkpoint.experts import gated_expert, qwen_weights, read_routing
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import WeightMap
from exporter.decoder.spec import DecoderSpec, ExpertsSpec, NormSpan, NormSpec


def decoder_spec(config: Config) -> DecoderSpec:
    config.refuse("clip_qkv")
    norm, bias = NormSpec(config.number("rms_norm_eps", 1e-5)), config.flag("attention_bias", False)
    routing = read_routing(
        config.defaulting(num_experts=64), "num_experts", 8, renormalized=config.flag("norm_topk_prob", False)
    )
    traits = DenseTraits(
        full_attention(config),
        norm=norm,
        query_key_norm=norm,
        query_key_norm_span=NormSpan.PROJECTION,
        query_key_value_bias=bias,
        output_bias=bias,
        kv_heads=config.integer("num_attention_heads"),
        experts=(ExpertsSpec(routing, gated_expert(config, "intermediate_size")),) * layer_count(config),
    )
    return dense_decoder(config, "olmoe", traits)


def weights(config: Config) -> WeightMap:
    return qwen_weights()


PUBLISHED = Published(
    "OLMoE-1B-7B-0924",
    {
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    6_919_161_856,
)
FAMILIES.add("olmoe", Family("olmoe", decoder_spec, PUBLISHED, weights))
