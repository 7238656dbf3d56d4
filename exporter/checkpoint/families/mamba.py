"""Mamba: selective scans alone, every channel with steps and decays of its own."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.recurrent import (
    backbone_weights,
    inner_channels,
    read_selective_scan,
    recurrent_decoder,
    scan_weights,
)
from exporter.checkpoint.weight_map import WeightMap
from exporter.decoder.spec import DecoderSpec, NormSpec

WEIGHTS = backbone_weights(scan_weights("backbone.layers.{}.mixer"))


def decoder_spec(file: Config) -> DecoderSpec:
    config = file.defaulting(hidden_size=768)
    norm = NormSpec(config.number("layer_norm_epsilon", 1e-5))
    mixer = read_selective_scan(config, inner_channels(config))
    return recurrent_decoder(config, "mamba", mixer, norm, tied=True)


def weights(config: Config) -> WeightMap:
    return WEIGHTS


PUBLISHED = Published(
    "mamba-2.8b",
    {
        "vocab_size": 50280,
        "hidden_size": 2560,
        "num_hidden_layers": 64,
        "expand": 2,
        "state_size": 16,
        "conv_kernel": 4,
        "time_step_rank": 160,
        "use_bias": False,
        "use_conv_bias": True,
        "hidden_act": "silu",
        "layer_norm_epsilon": 1e-05,
    },
    2_768_345_600,
)
FAMILIES.add("mamba", Family("mamba", decoder_spec, PUBLISHED, weights))
