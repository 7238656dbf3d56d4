"""Qwen2's mixtures of experts: Qwen2's attention, routed experts, and one that all tokens pass behind a gate of its own."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, layer_count, windows_from_layer_types
from exporter.checkpoint.experts import SHARED_GATE, gated_expert, qwen_weights, read_routing, sparse_layers
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import Source, WeightMap
from exporter.decoder.spec import DecoderSpec, ExpertsSpec


def decoder_spec(config: Config) -> DecoderSpec:
    block = ExpertsSpec(
        read_routing(config, "num_experts", 4, renormalized=config.flag("norm_topk_prob", False)),
        gated_expert(config, "moe_intermediate_size"),
        gated_expert(config, "shared_expert_intermediate_size"),
        shared_gate=True,
    )
    traits = DenseTraits(
        windows(config), query_key_value_bias=config.flag("qkv_bias", True), experts=sparse_layers(config, block)
    )
    return dense_decoder(config, "qwen2_moe", traits)


def windows(config: Config) -> tuple[int | None, ...]:
    """Without `layer_types`, every other layer below `max_window_layers` is windowed, where windows are in use at all."""
    if not config.flag("use_sliding_window", False):
        return (None,) * layer_count(config)
    window, end = config.integer("sliding_window", 4096), config.integer("max_window_layers", 28, least=0)
    default = tuple(window if index % 2 == 0 and index < end else None for index in range(layer_count(config)))
    return windows_from_layer_types(config, default)


def weights(config: Config) -> WeightMap:
    return qwen_weights("shared_expert").including(
        {SHARED_GATE: Source("model.layers.{}.mlp.shared_expert_gate.weight")}
    )


PUBLISHED = Published(
    "Qwen1.5-MoE-A2.7B",
    {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    },
    14_315_784_192,
)
FAMILIES.add("qwen2_moe", Family("qwen2_moe", decoder_spec, PUBLISHED, weights))
