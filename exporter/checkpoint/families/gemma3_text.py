"""Gemma 3, its text decoder: local layers with a rotary base of their own between global ones, norms of queries and keys."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import dense_decoder, windows_from_layer_types
from exporter.checkpoint.families.gemma2 import HEAD_DIM, WINDOW, four_norm_traits, layers, weights
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.rotary import rotary_of
from exporter.decoder.spec import DecoderSpec, NormSpec, RotarySpec

GLOBAL_THETA, LOCAL_THETA = 1_000_000.0, 10_000.0


USUAL = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072}
"""Left out by configs of checkpoints with towers where they are as usual."""


def decoder_spec(file: Config) -> DecoderSpec:
    config = file.defaulting(**USUAL)
    config.refuse("attn_logit_softcapping")  # transformers reads the field and leaves it unused
    period, window = config.integer("sliding_window_pattern", 6), config.integer("sliding_window", WINDOW)
    windows = windows_from_layer_types(
        config, tuple(window if (index + 1) % period else None for index in layers(config))
    )
    local, everywhere = rotary_pair(config)
    traits = four_norm_traits(
        config,
        windows,
        score_cap=None,
        logits_cap=config.cap("final_logit_softcapping"),
        rotary=tuple(everywhere if bound is None else local for bound in windows),
        query_key_norm=NormSpec(config.number("rms_norm_eps", 1e-6)),
    )
    return dense_decoder(config, "gemma3_text", traits)


def rotary_pair(config: Config) -> tuple[RotarySpec, RotarySpec]:
    """Of local and of global layers. Before transformers 5 `rope_scaling` concerned the global ones alone."""
    head_dim, current = config.integer("head_dim", HEAD_DIM), config.section("rope_parameters")
    stretched = config.section("rope_scaling")
    if current.values and stretched.values:
        raise config.fault("rope_scaling", "stands beside rope_parameters; keep the one the model was trained with")
    if current.values and not {"full_attention", "sliding_attention"} & set(current.values):
        raise config.fault("rope_parameters", "must hold full_attention and sliding_attention")
    local, everywhere = current.section("sliding_attention"), current.section("full_attention")
    return (
        rotary_of(config, local, head_dim, theta_field="rope_local_base_freq", theta=LOCAL_THETA),
        rotary_of(config, everywhere if current.values else stretched, head_dim, theta=GLOBAL_THETA),
    )


PUBLISHED = Published(
    "gemma-3-1b",
    {
        "vocab_size": 262144,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 256,
    },
    999_885_952,
)
FAMILIES.add("gemma3_text", Family("gemma3_text", decoder_spec, PUBLISHED, weights))
