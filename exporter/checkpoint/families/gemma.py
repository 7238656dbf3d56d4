"""Gemma: scaled embeddings that the head shares, norm gains stored less one, gated tanh-GELU, wide heads."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, WeightMap, scaled_ends
from exporter.decoder.spec import Activation, DecoderSpec


def decoder_spec(config: Config) -> DecoderSpec:
    config.refuse("use_bidirectional_attention", False)
    bias = config.flag("attention_bias", False)
    traits = DenseTraits(
        full_attention(config),
        query_key_value_bias=bias,
        output_bias=bias,
        kv_heads=16,
        head_dim=256,
        activation=gemma_activation(config),
        tied_default=True,
    )
    return dense_decoder(config, "gemma", traits)


def gemma_activation(config: Config) -> Activation:
    """The first release wrote "gelu" and meant its approximation."""
    if config.text("hidden_act", "gelu") == "gelu":
        return Activation.GELU_TANH
    return config.activation()


def gemma_weights(config: Config, names: WeightMap = LLAMA_WEIGHTS) -> WeightMap:
    """Every norm multiplies by one plus its stored gain; embeddings are multiplied by the root of the hidden size."""
    norms = [name for name in names.sources if name.endswith("norm")]
    tied = config.flag("tie_word_embeddings", True)
    return scaled_ends(names.changed(norms, offset=1.0), tied, config.integer("hidden_size") ** 0.5)


PUBLISHED = Published(
    "gemma-2b",
    {
        "vocab_size": 256000,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "hidden_act": "gelu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
    },
    2_506_172_416,
)
FAMILIES.add("gemma", Family("gemma", decoder_spec, PUBLISHED, gemma_weights))
