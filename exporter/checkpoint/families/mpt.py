"""MPT: attention biased by distance, layer norms and matrices without any bias, one fused tensor for queries, keys and values."""

from exporter.checkpoint.alibi import distance_slopes
from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention, layer_count
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import QUERY_KEY_VALUE, WeightMap
from exporter.decoder.spec import Activation, DecoderSpec, NormKind, NormSpec

OWN_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_seq_len",
}
WEIGHTS = WeightMap.of(
    {
        "embedding": "transformer.wte.weight",
        "layers.attention_norm": "transformer.blocks.{}.norm_1.weight",
        "layers.attention.output": "transformer.blocks.{}.attn.out_proj.weight",
        "layers.feed_forward_norm": "transformer.blocks.{}.norm_2.weight",
        "layers.feed_forward.up": "transformer.blocks.{}.ffn.up_proj.weight",
        "layers.feed_forward.down": "transformer.blocks.{}.ffn.down_proj.weight",
        "final_norm": "transformer.norm_f.weight",
        "head": "lm_head.weight",
    },
    prefix="transformer.",
)


def decoder_spec(file: Config) -> DecoderSpec:
    config, attention = usual_names(file), file.section("attn_config")
    refuse_variants(config, attention)
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    scale = attention.positive("softmax_scale", (hidden / heads) ** -0.5)
    traits = DenseTraits(
        full_attention(config),
        norm=NormSpec(config.number("layer_norm_epsilon", 1e-5), NormKind.LAYER),
        rotary=(None,) * layer_count(config),
        distance_slopes=distance_slopes(heads),
        score_scales=(scale,) * layer_count(config),
        activation=Activation.GELU,
        gated=False,
        tied_default=True,
    )
    return dense_decoder(config, "mpt", traits)


def refuse_variants(config: Config, attention: Config) -> None:
    """Fields of the training code that change the mathematics; transformers ignores most of them."""
    config.refuse("no_bias", True)
    config.refuse("expansion_ratio", 4)
    config.refuse("logit_scale")
    config.refuse("embedding_fraction", 1)
    attention.refuse("alibi", True)
    attention.refuse("alibi_bias_max", 8)
    attention.refuse("clip_qkv")
    attention.refuse("qk_ln", False)
    attention.refuse("prefix_lm", False)
    attention.refuse("attn_type", "multihead_attention")


def usual_names(file: Config) -> Config:
    named = file.named(OWN_NAMES)
    derived = {
        "num_key_value_heads": named.integer("num_attention_heads"),
        "intermediate_size": 4 * named.integer("hidden_size"),
    }
    return file.replacing(**derived).named(OWN_NAMES)


def weights(config: Config) -> WeightMap:
    hidden = usual_names(config).integer("hidden_size")
    return WEIGHTS.joined("transformer.blocks.{}.attn.Wqkv.weight", QUERY_KEY_VALUE, (hidden, hidden, hidden))


PUBLISHED = Published(
    "mpt-7b",
    {
        "vocab_size": 50432,
        "d_model": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "max_seq_len": 2048,
        "expansion_ratio": 4,
        "no_bias": True,
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_type": "multihead_attention"},
    },
    6_649_286_656,
)
FAMILIES.add("mpt", Family("mpt", decoder_spec, PUBLISHED, weights))
