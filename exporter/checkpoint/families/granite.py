"""Granite 3: Llama's blocks with constant factors on embeddings, residuals, attention scores and logits."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention, layer_count
from exporter.checkpoint.family import FAMILIES, Family
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


FAMILIES.add("granite", Family("granite", decoder_spec, weights))
