"""LFM2: most layers are short convolutions between two gates, some are attention with norms of queries and keys."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, full_attention, layer_count
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.recurrent import hybrid_decoder, layer_kinds, numbered_layers
from exporter.checkpoint.rotary import read_rotary
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, WeightMap
from exporter.decoder.recurrence import CausalConvolution, ShortConvolution
from exporter.decoder.spec import Activation, DecoderSpec, NormSpec

CONVOLUTION, ATTENTION = "conv", "full_attention"
THETA = 1_000_000.0

WEIGHTS = LLAMA_WEIGHTS.including(
    WeightMap.of(
        {
            "layers.attention_norm": "model.layers.{}.operator_norm.weight",
            "layers.attention.query_norm": "model.layers.{}.self_attn.q_layernorm.weight",
            "layers.attention.key_norm": "model.layers.{}.self_attn.k_layernorm.weight",
            "layers.attention.output": "model.layers.{}.self_attn.out_proj.weight",
            "layers.recurrence.input": "model.layers.{}.conv.in_proj.weight",
            "layers.recurrence.convolution": "model.layers.{}.conv.conv.weight",
            "layers.recurrence.output": "model.layers.{}.conv.out_proj.weight",
            "layers.feed_forward_norm": "model.layers.{}.ffn_norm.weight",
            "layers.feed_forward.gate": "model.layers.{}.feed_forward.w1.weight",
            "layers.feed_forward.up": "model.layers.{}.feed_forward.w3.weight",
            "layers.feed_forward.down": "model.layers.{}.feed_forward.w2.weight",
            "final_norm": "model.embedding_norm.weight",
        }
    ).sources
)


def decoder_spec(file: Config) -> DecoderSpec:
    config = usual_names(file)
    norm, hidden = NormSpec(config.number("norm_eps", 1e-5)), config.integer("hidden_size")
    head_dim = config.integer("head_dim", hidden // config.integer("num_attention_heads"))
    traits = DenseTraits(
        full_attention(config),
        norm=norm,
        query_key_norm=norm,
        kv_heads=8,
        rotary=(read_rotary(config, head_dim, theta=THETA),) * layer_count(config),
        activation=Activation.SILU,
        tied_default=True,
    )
    bias = config.flag("conv_bias", False)
    convolution = CausalConvolution(hidden, config.integer("conv_L_cache", 3, least=2), bias)
    mixers = [ShortConvolution(convolution, bias) if kind == CONVOLUTION else None for kind in kinds(config)]
    return hybrid_decoder(config, "lfm2", traits, mixers)


def usual_names(file: Config) -> Config:
    config = file.named({"tie_word_embeddings": "tie_embedding", "intermediate_size": "block_ff_dim"})
    tied = config.flag("tie_word_embeddings", True)
    derived = {"intermediate_size": inner_size(config), "tie_word_embeddings": tied}
    return file.defaulting(max_position_embeddings=128_000).replacing(**derived)


def inner_size(config: Config) -> int:
    """Width of the feed-forward block: two thirds of the field, times a factor, rounded up, unless the field is meant as it stands."""
    size = config.integer("intermediate_size", 12288)
    if not config.flag("block_auto_adjust_ff_dim", True):
        return size
    multiple = config.integer("block_multiple_of", 256)
    scaled = int(config.positive("block_ffn_dim_multiplier", 1.0) * int(2 * size / 3))
    return -(-scaled // multiple) * multiple


def kinds(config: Config) -> list[str]:
    """Of every layer; older files number those with attention."""
    count = layer_count(config)
    attending = numbered_layers(config, "full_attn_idxs", range(count))
    default = [ATTENTION if index in attending else CONVOLUTION for index in range(count)]
    return layer_kinds(config, "layer_types", (CONVOLUTION, ATTENTION), default)


def weights(config: Config) -> WeightMap:
    return WEIGHTS


PUBLISHED = Published(
    "LFM2-1.2B",
    {
        "vocab_size": 65536,
        "hidden_size": 2048,
        "block_ff_dim": 12288,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 128000,
        "norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "conv_bias": False,
        "conv_L_cache": 3,
        "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        "tie_embedding": True,
    },
    1_170_340_608,
)
FAMILIES.add("lfm2", Family("lfm2", decoder_spec, PUBLISHED, weights))
