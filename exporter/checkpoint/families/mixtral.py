"""Mixtral: Mistral's attention, every feed-forward block a mixture whose chosen experts' weights sum to one."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, layer_count
from exporter.checkpoint.experts import expert_weights, gated_expert, read_routing
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.rotary import read_rotary
from exporter.checkpoint.weight_map import WeightMap
from exporter.decoder.spec import DecoderSpec, ExpertsSpec, NormSpec

THETA = 1_000_000.0


def decoder_spec(config: Config) -> DecoderSpec:
    routing = read_routing(config.defaulting(num_local_experts=8), "num_local_experts", 2, renormalized=True)
    block = ExpertsSpec(routing, gated_expert(config, "intermediate_size"))
    hidden, heads, layers = config.integer("hidden_size"), config.integer("num_attention_heads"), layer_count(config)
    rotary = read_rotary(config, config.integer("head_dim", hidden // heads), theta=THETA)
    traits = DenseTraits(
        (config.optional_integer("sliding_window"),) * layers,
        norm=NormSpec(config.number("rms_norm_eps", 1e-5)),
        kv_heads=8,
        rotary=(rotary,) * layers,
        experts=(block,) * layers,
    )
    return dense_decoder(config, "mixtral", traits)


def weights(config: Config) -> WeightMap:
    return expert_weights("model.layers.{}.block_sparse_moe", "w1", "w3", "w2", "gate")


PUBLISHED = Published(
    "Mixtral-8x7B-v0.1",
    {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    46_702_792_704,
)
FAMILIES.add("mixtral", Family("mixtral", decoder_spec, PUBLISHED, weights))
