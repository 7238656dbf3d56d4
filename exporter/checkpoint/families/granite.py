"""Granite 3: Llama's blocks with constant factors on embeddings, residuals, attention scores and logits."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention, layer_count
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, RESIDUALS, WeightMap, scaled_ends
from exporter.decoder.spec import DecoderSpec


def decoder_spec(config: Config) -> DecoderSpec:
    attention_bias = config.flag("attention_bias", False)
    traits = DenseTraits(
        full_attention(config),
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=config.flag("mlp_bias", False),
        kv_heads=config.integer("num_attention_heads"),
        score_scales=(config.positive("attention_multiplier", 1.0),) * layer_count(config),
    )
    return dense_decoder(config, "granite", traits)


def weights(config: Config) -> WeightMap:
    residual = LLAMA_WEIGHTS.changed(RESIDUALS, factor=config.number("residual_multiplier", 1.0))
    tied = config.flag("tie_word_embeddings", False)
    embedding = config.positive("embedding_multiplier", 1.0)
    return scaled_ends(residual, tied, embedding, 1 / config.positive("logits_scaling", 1.0))


PUBLISHED = Published(
    "granite-3.1-2b-base",
    {
        "vocab_size": 49155,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "rope_theta": 5000000.0,
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.015625,
        "tie_word_embeddings": True,
    },
    2_533_531_648,
)
FAMILIES.add("granite", Family("granite", decoder_spec, PUBLISHED, weights))
