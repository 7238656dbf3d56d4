"""Phi-1, 1.5 and 2: attention and an ungated feed-forward side by side on one layer norm, biases everywhere, also on the logits."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, Source, WeightMap
from exporter.decoder.spec import DecoderSpec, NormKind, NormSpec

NAMES = {
    "layers.attention.output": Source("model.layers.{}.self_attn.dense.weight"),
    "layers.attention.query_norm": Source("model.layers.{}.self_attn.q_layernorm.weight"),
    "layers.attention.key_norm": Source("model.layers.{}.self_attn.k_layernorm.weight"),
    "layers.feed_forward.up": Source("model.layers.{}.mlp.fc1.weight"),
    "layers.feed_forward.down": Source("model.layers.{}.mlp.fc2.weight"),
    "final_norm": Source("model.final_layernorm.weight"),
}


def decoder_spec(config: Config) -> DecoderSpec:
    norm = NormSpec(config.number("layer_norm_eps", 1e-5), NormKind.LAYER, bias=True)
    traits = DenseTraits(
        full_attention(config),
        norm=norm,
        parallel=True,
        shared_norm=True,
        query_key_norm=norm if config.flag("qk_layernorm", False) else None,
        query_key_value_bias=True,
        output_bias=True,
        feed_forward_bias=True,
        head_bias=True,
        kv_heads=config.integer("num_attention_heads"),
        partial_rotary=0.5,
        activation=config.activation(default="gelu_new"),
        gated=False,
    )
    return dense_decoder(config, "phi", traits)


def weights(config: Config) -> WeightMap:
    return LLAMA_WEIGHTS.including(NAMES)


PUBLISHED = Published(
    "phi-2",
    {
        "vocab_size": 51200,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-05,
        "partial_rotary_factor": 0.4,
        "rope_theta": 10000.0,
        "qk_layernorm": False,
        "tie_word_embeddings": False,
    },
    2_779_683_840,
)
FAMILIES.add("phi", Family("phi", decoder_spec, PUBLISHED, weights))
