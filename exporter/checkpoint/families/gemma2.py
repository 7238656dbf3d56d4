"""Gemma 2: norms before and after each block, soft caps on scores and logits, every other layer windowed."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, layer_count, windows_from_layer_types
from exporter.checkpoint.families.gemma import gemma_weights
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, Source, WeightMap
from exporter.decoder.spec import DecoderSpec, NormSpec, RotarySpec

FOUR_NORMS = {
    "layers.attention_post_norm": Source("model.layers.{}.post_attention_layernorm.weight"),
    "layers.feed_forward_norm": Source("model.layers.{}.pre_feedforward_layernorm.weight"),
    "layers.feed_forward_post_norm": Source("model.layers.{}.post_feedforward_layernorm.weight"),
}
HEADS, KV_HEADS, HEAD_DIM, WINDOW = 8, 4, 256, 4096
"""What the config means where it says nothing."""


def decoder_spec(config: Config) -> DecoderSpec:
    alternating = tuple(config.integer("sliding_window", WINDOW) if not index % 2 else None for index in layers(config))
    traits = four_norm_traits(
        config,
        windows_from_layer_types(config, alternating),
        score_cap=config.cap("attn_logit_softcapping", 50.0),
        logits_cap=config.cap("final_logit_softcapping", 30.0),
    )
    return dense_decoder(config, "gemma2", traits)


def layers(config: Config) -> range:
    return range(layer_count(config))


def four_norm_traits(
    config: Config,
    windows: tuple[int | None, ...],
    score_cap: float | None,
    logits_cap: float | None,
    rotary: tuple[RotarySpec | None, ...] | None = None,
    query_key_norm: NormSpec | None = None,
) -> DenseTraits:
    """What Gemma 2 and 3 share."""
    config.refuse("use_bidirectional_attention", False)
    bias = config.flag("attention_bias", False)
    return DenseTraits(
        windows,
        norm_after=True,
        query_key_norm=query_key_norm,
        query_key_value_bias=bias,
        output_bias=bias,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rotary=rotary,
        score_scales=(config.positive("query_pre_attn_scalar", 256) ** -0.5,) * layer_count(config),
        score_cap=score_cap,
        activation=config.activation("hidden_activation", "gelu_pytorch_tanh"),
        tied_default=True,
        logits_cap=logits_cap,
    )


def weights(config: Config) -> WeightMap:
    return gemma_weights(config, LLAMA_WEIGHTS.including(FOUR_NORMS))


PUBLISHED = Published(
    "gemma-2-2b",
    {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    2_614_341_888,
)
FAMILIES.add("gemma2", Family("gemma2", decoder_spec, PUBLISHED, weights))
