"""StableLM 3B and StableLM 2: layer norms, a quarter of each head rotated, optionally parallel blocks on one norm."""

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention
from exporter.checkpoint.family import FAMILIES, Family
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


FAMILIES.add("stablelm", Family("stablelm", decoder_spec))
