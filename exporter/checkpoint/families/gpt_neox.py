"""GPT-NeoX and Pythia: blocks side by side on a layer norm each, a quarter of each head rotated, heads interleaved in one tensor."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, HeadShape, dense_decoder, full_attention
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import QUERY_KEY_VALUE, WeightMap
from exporter.decoder.spec import DecoderSpec, NormKind, NormSpec

OWN_NAMES = {"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"}
WEIGHTS = WeightMap.of(
    {
        "embedding": "gpt_neox.embed_in.weight",
        "layers.attention_norm": "gpt_neox.layers.{}.input_layernorm.weight",
        "layers.attention.output": "gpt_neox.layers.{}.attention.dense.weight",
        "layers.feed_forward_norm": "gpt_neox.layers.{}.post_attention_layernorm.weight",
        "layers.feed_forward.up": "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight",
        "layers.feed_forward.down": "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight",
        "final_norm": "gpt_neox.final_layer_norm.weight",
        "head": "lm_head.weight",
    },
    prefix="gpt_neox.",
    former={"lm_head.weight": "embed_out.weight"},
)


def decoder_spec(file: Config) -> DecoderSpec:
    config = usual_names(file)
    return dense_decoder(config, "gpt_neox", traits(config))


def usual_names(file: Config) -> Config:
    return file.replacing(num_key_value_heads=file.integer("num_attention_heads")).named(OWN_NAMES)


def traits(config: Config) -> DenseTraits:
    attention_bias = config.flag("attention_bias", True)
    return DenseTraits(
        full_attention(config),
        norm=NormSpec(config.number("layer_norm_eps", 1e-5), NormKind.LAYER, bias=True),
        parallel=config.flag("use_parallel_residual", True),
        query_key_value_bias=attention_bias,
        output_bias=attention_bias,
        feed_forward_bias=True,
        partial_rotary=0.25,
        activation=config.activation(default="gelu"),
        gated=False,
    )


def weights(file: Config) -> WeightMap:
    config = usual_names(file)
    channels = HeadShape.read(config, traits(config)).channels
    tensor = "gpt_neox.layers.{}.attention.query_key_value.weight"
    return WEIGHTS.joined(tensor, QUERY_KEY_VALUE, (channels, channels, channels))


PUBLISHED = Published(
    "pythia-160m",
    {
        "vocab_size": 50304,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-05,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    },
    162_322_944,
)
FAMILIES.add("gpt_neox", Family("gpt_neox", decoder_spec, PUBLISHED, weights))
