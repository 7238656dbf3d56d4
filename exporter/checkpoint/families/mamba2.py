"""Mamba 2: state space layers alone, heads that share a decay, a gated norm over groups of channels."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.recurrent import backbone_weights, dual_weights, inner_channels, read_dual, recurrent_decoder
from exporter.checkpoint.weight_map import WeightMap
from exporter.decoder.spec import DecoderSpec, NormSpec

WEIGHTS = backbone_weights(dual_weights("backbone.layers.{}.mixer"))


def decoder_spec(file: Config) -> DecoderSpec:
    config = file.defaulting(num_heads=128, head_dim=64, n_groups=8, state_size=128, hidden_size=4096)
    eps = config.number("layer_norm_epsilon", 1e-5)
    mixer = read_dual(config, inner_channels(config), eps)
    return recurrent_decoder(config, "mamba2", mixer, NormSpec(eps), tied=False)


def weights(config: Config) -> WeightMap:
    return WEIGHTS


PUBLISHED = Published(
    "mamba2-2.7b",
    {
        "vocab_size": 50288,
        "hidden_size": 2560,
        "num_hidden_layers": 64,
        "num_heads": 80,
        "head_dim": 64,
        "expand": 2,
        "n_groups": 1,
        "state_size": 128,
        "conv_kernel": 4,
        "layer_norm_epsilon": 1e-05,
        "tie_word_embeddings": True,
    },
    2_702_599_680,
)
FAMILIES.add("mamba2", Family("mamba2", decoder_spec, PUBLISHED, weights))
