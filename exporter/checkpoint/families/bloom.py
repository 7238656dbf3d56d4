"""BLOOM: attention biased by distance instead of positions, a norm on the embeddings, heads interleaved in one fused tensor."""

from exporter.checkpoint.alibi import distance_slopes
from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, HeadShape, dense_decoder, full_attention, layer_count
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import QUERY_KEY_VALUE, WeightMap
from exporter.decoder.spec import Activation, DecoderSpec, NormKind, NormSpec

OWN_NAMES = {
    "hidden_size": "n_embed",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "seq_length",
}
WEIGHTS = WeightMap.of(
    {
        "embedding": "transformer.word_embeddings.weight",
        "embedding_norm": "transformer.word_embeddings_layernorm.weight",
        "layers.attention_norm": "transformer.h.{}.input_layernorm.weight",
        "layers.attention.output": "transformer.h.{}.self_attention.dense.weight",
        "layers.feed_forward_norm": "transformer.h.{}.post_attention_layernorm.weight",
        "layers.feed_forward.up": "transformer.h.{}.mlp.dense_h_to_4h.weight",
        "layers.feed_forward.down": "transformer.h.{}.mlp.dense_4h_to_h.weight",
        "final_norm": "transformer.ln_f.weight",
        "head": "lm_head.weight",
    },
    prefix="transformer.",
)


def decoder_spec(file: Config) -> DecoderSpec:
    config = usual_names(file)
    config.refuse("apply_residual_connection_post_layernorm", False)
    return dense_decoder(config, "bloom", traits(config))


def usual_names(file: Config) -> Config:
    named = file.named(OWN_NAMES)
    derived = {
        "num_key_value_heads": named.integer("num_attention_heads"),
        "intermediate_size": 4 * named.integer("hidden_size"),
    }
    return file.defaulting(seq_length=2048).replacing(**derived).named(OWN_NAMES)


def traits(config: Config) -> DenseTraits:
    norm = NormSpec(config.number("layer_norm_epsilon", 1e-5), NormKind.LAYER, bias=True)
    return DenseTraits(
        full_attention(config),
        norm=norm,
        query_key_value_bias=True,
        output_bias=True,
        feed_forward_bias=True,
        rotary=(None,) * layer_count(config),
        distance_slopes=distance_slopes(config.integer("num_attention_heads")),
        activation=Activation.GELU_TANH,
        gated=False,
        tied_default=True,
        embedding_norm=norm,
    )


def weights(config: Config) -> WeightMap:
    named = usual_names(config)
    channels = HeadShape.read(named, traits(named)).channels
    tensor = "transformer.h.{}.self_attention.query_key_value.weight"
    return WEIGHTS.joined(tensor, QUERY_KEY_VALUE, (channels, channels, channels))


PUBLISHED = Published(
    "bloom-560m",
    {
        "vocab_size": 250880,
        "n_embed": 1024,
        "n_layer": 24,
        "num_attention_heads": 16,
        "seq_length": 2048,
        "layer_norm_epsilon": 1e-05,
        "apply_residual_connection_post_layernorm": False,
    },
    559_214_592,
)
FAMILIES.add("bloom", Family("bloom", decoder_spec, PUBLISHED, weights))
