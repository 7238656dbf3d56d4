"""OLMo 2: norms after the blocks instead of before them, and over whole projections of queries and keys."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, Source, WeightMap
from exporter.decoder.spec import DecoderSpec, NormSpan, NormSpec

POST_NORMS = {
    "layers.attention_post_norm": Source("model.layers.{}.post_attention_layernorm.weight"),
    "layers.feed_forward_post_norm": Source("model.layers.{}.post_feedforward_layernorm.weight"),
}


def decoder_spec(config: Config) -> DecoderSpec:
    norm, bias = NormSpec(config.number("rms_norm_eps", 1e-5)), config.flag("attention_bias", False)
    traits = DenseTraits(
        full_attention(config),
        norm=norm,
        norm_before=False,
        norm_after=True,
        query_key_norm=norm,
        query_key_norm_span=NormSpan.PROJECTION,
        query_key_value_bias=bias,
        output_bias=bias,
        kv_heads=config.integer("num_attention_heads"),
    )
    return dense_decoder(config, "olmo2", traits)


def weights(config: Config) -> WeightMap:
    return LLAMA_WEIGHTS.including(POST_NORMS)


PUBLISHED = Published(
    "OLMo-2-0425-1B",
    {
        "vocab_size": 100352,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-06,
        "rope_theta": 500000,
        "tie_word_embeddings": False,
    },
    1_484_916_736,
)
FAMILIES.add("olmo2", Family("olmo2", decoder_spec, PUBLISHED, weights))
