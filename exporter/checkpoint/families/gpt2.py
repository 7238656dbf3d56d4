"""GPT-2: learned positions, layer norms, biases everywhere, weights stored transposed, queries, keys and values in one tensor."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention, layer_count
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import QUERY_KEY_VALUE, RESIDUALS, WeightMap
from exporter.decoder.spec import DecoderSpec, NormKind, NormSpec

OWN_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "hidden_act": "activation_function",
}
WEIGHTS = WeightMap.of(
    {
        "embedding": "transformer.wte.weight",
        "positions": "transformer.wpe.weight",
        "layers.attention_norm": "transformer.h.{}.ln_1.weight",
        "layers.attention.output": "transformer.h.{}.attn.c_proj.weight",
        "layers.feed_forward_norm": "transformer.h.{}.ln_2.weight",
        "layers.feed_forward.up": "transformer.h.{}.mlp.c_fc.weight",
        "layers.feed_forward.down": "transformer.h.{}.mlp.c_proj.weight",
        "final_norm": "transformer.ln_f.weight",
        "head": "lm_head.weight",
    },
    prefix="transformer.",
)


def decoder_spec(file: Config) -> DecoderSpec:
    config = usual_names(file)
    config.refuse("add_cross_attention", False)
    heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    scale = (hidden // heads) ** -0.5 if config.flag("scale_attn_weights", True) else 1.0
    falling = config.flag("scale_attn_by_inverse_layer_idx", False)
    traits = DenseTraits(
        full_attention(config),
        norm=NormSpec(config.number("layer_norm_epsilon", 1e-5), NormKind.LAYER, bias=True),
        query_key_value_bias=True,
        output_bias=True,
        feed_forward_bias=True,
        rotary=(None,) * layer_count(config),
        score_scales=tuple(scale / (index + 1) if falling else scale for index in range(layer_count(config))),
        inner_size=4 * hidden,
        activation=config.activation(default="gelu_new"),
        gated=False,
        tied_default=True,
        learned_positions=config.integer("max_position_embeddings"),
    )
    return dense_decoder(config, "gpt2", traits)


def usual_names(file: Config) -> Config:
    named = file.named(OWN_NAMES)
    return file.replacing(num_key_value_heads=named.integer("num_attention_heads")).named(OWN_NAMES)


def weights(config: Config) -> WeightMap:
    hidden = usual_names(config).integer("hidden_size")
    fused = WEIGHTS.joined("transformer.h.{}.attn.c_attn.weight", QUERY_KEY_VALUE, (hidden, hidden, hidden))
    return fused.changed([*QUERY_KEY_VALUE, *RESIDUALS, "layers.feed_forward.up"], transposed=True)


PUBLISHED = Published(
    "gpt2",
    {
        "vocab_size": 50257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-05,
    },
    124_439_808,
)
FAMILIES.add("gpt2", Family("gpt2", decoder_spec, PUBLISHED, weights))
