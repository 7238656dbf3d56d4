"""StableLM 3B and StableLM 2: layer norms, a quarter of each head rotated, optionally parallel blocks on one norm."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.decoder.spec import DecoderSpec, NormKind, NormSpec


def decoder_spec(config: Config) -> DecoderSpec:
    config.refuse("qk_layernorm", False)  # a gain for each head, as in StableLM 2 12B
    parallel = config.flag("use_parallel_residual", False)
    traits = DenseTraits(
        full_attention(config),
        norm=NormSpec(config.number("layer_norm_eps", 1e-5), NormKind.LAYER, bias=True),
        parallel=parallel,
        shared_norm=parallel,
        query_key_value_bias=config.flag("use_qkv_bias", False),
        kv_heads=32,
        partial_rotary=0.25,
    )
    return dense_decoder(config, "stablelm", traits)


PUBLISHED = Published(
    "stablelm-2-1_6b",
    {
        "vocab_size": 100352,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-05,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000,
        "use_qkv_bias": True,
        "tie_word_embeddings": False,
    },
    1_644_515_328,
)
FAMILIES.add("stablelm", Family("stablelm", decoder_spec, PUBLISHED))
