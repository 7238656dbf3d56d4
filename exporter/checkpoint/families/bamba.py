"""Bamba: Mamba 2 in most layers, attention in some, a gated feed-forward block in all."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, full_attention, layer_count
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.recurrent import (
    HYBRID_MAMBA2_NAMES,
    dual_weights,
    hybrid_decoder,
    hybrid_weights,
    inner_channels,
    numbered_layers,
    read_dual,
)
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, WeightMap
from exporter.decoder.spec import DecoderSpec, NormSpec

ROTATED_SHARE = 0.5
"""transformers sets it whatever the file says."""

WEIGHTS = hybrid_weights(LLAMA_WEIGHTS, dual_weights("model.layers.{}.mamba"))


def decoder_spec(file: Config) -> DecoderSpec:
    config = file.defaulting(max_position_embeddings=262144, mamba_n_heads=128, mamba_n_groups=1, mamba_d_state=256)
    eps, bias = config.number("rms_norm_eps", 1e-5), config.flag("attention_bias", False)
    traits = DenseTraits(
        full_attention(config),
        norm=NormSpec(eps),
        query_key_value_bias=bias,
        output_bias=bias,
        feed_forward_bias=config.flag("mlp_bias", False),
        kv_heads=8,
        partial_rotary=ROTATED_SHARE,
    )
    named = config.named(HYBRID_MAMBA2_NAMES)
    mixer, attending = read_dual(named, inner_channels(named), eps), numbered_layers(config, "attn_layer_indices")
    mixers = [None if index in attending else mixer for index in range(layer_count(config))]
    return hybrid_decoder(config, "bamba", traits, mixers)


def weights(config: Config) -> WeightMap:
    return WEIGHTS


PUBLISHED = Published(
    "Bamba-9B-v2",
    {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-05,
        "attn_layer_indices": [9, 18, 27],
        "mamba_n_heads": 128,
        "mamba_d_head": 64,
        "mamba_n_groups": 1,
        "mamba_d_state": 128,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "tie_word_embeddings": False,
    },
    9_780_235_392,
)
FAMILIES.add("bamba", Family("bamba", decoder_spec, PUBLISHED, weights))
