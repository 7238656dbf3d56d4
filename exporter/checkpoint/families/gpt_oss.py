"""gpt-oss: learned attention sinks, every other layer windowed, YaRN without truncation, experts with clamped gates and biases.

Experts are floats, a matrix lying transposed, or MXFP4, rows first, as they are published.
"""

from dataclasses import replace

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, layer_count, windows_from_layer_types
from exporter.checkpoint.experts import EXPERTS, read_routing
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.rotary import read_rotary
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, Rows, Source, WeightMap
from exporter.decoder.spec import Activation, DecoderSpec, ExpertsSpec, FeedForwardSpec, NormSpec

THETA, HEAD_DIM, WINDOW = 150_000.0, 64, 128
SLOPES = {1.0: Activation.SILU, 1.702: Activation.QUICK_GELU}
USUAL_ROTARY = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
GATES, OTHERS = Rows(0, 1, 2), Rows(1, 1, 2)
"""Gates and the other side lie row beside row."""


def decoder_spec(config: Config) -> DecoderSpec:
    bias, layers = config.flag("attention_bias", True), layer_count(config)
    stretched = any(config.get(field) for field in ("rope_parameters", "rope_scaling"))
    rotary = read_rotary(
        config if stretched else config.replacing(rope_scaling=USUAL_ROTARY),
        config.integer("head_dim", HEAD_DIM),
        theta=THETA,
    )
    window = config.integer("sliding_window", WINDOW)
    default = tuple(None if index % 2 else window for index in range(layers))
    traits = DenseTraits(
        windows_from_layer_types(config.defaulting(sliding_window=WINDOW), default),
        norm=NormSpec(config.number("rms_norm_eps", 1e-5)),
        query_key_value_bias=bias,
        output_bias=bias,
        kv_heads=8,
        head_dim=HEAD_DIM,
        rotary=(rotary,) * layers,
        learned_sinks=True,
        experts=(_experts(config),) * layers,
    )
    return dense_decoder(config, "gpt_oss", traits)


def _experts(config: Config) -> ExpertsSpec:
    slope = config.number("swiglu_alpha", 1.702)
    if slope not in SLOPES:
        raise config.fault("swiglu_alpha", f"{slope:g}: only 1.702 and 1 are known")
    return ExpertsSpec(
        read_routing(config.defaulting(num_local_experts=128), "num_local_experts", 4, renormalized=True, bias=True),
        FeedForwardSpec(config.integer("intermediate_size"), SLOPES[slope], bias=True),
        limit=config.positive("swiglu_limit", 7.0),
        up_offset=1.0,
    )


def weights(config: Config) -> WeightMap:
    block, count = "model.layers.{}.mlp", config.integer("num_local_experts", 128)

    up, down = f"{block}.experts.gate_up_proj", f"{block}.experts.down_proj"
    floats = {
        f"{EXPERTS}.gate": Source(up, GATES, transposed=True, members=count),
        f"{EXPERTS}.up": Source(up, OTHERS, transposed=True, members=count),
        f"{EXPERTS}.down": Source(down, transposed=True, members=count),
    }
    biases = {
        f"{name}.bias": replace(source, tensor=f"{source.tensor}_bias", transposed=False)
        for name, source in floats.items()
    }
    blocks = {
        name: replace(source, tensor=f"{source.tensor}_blocks", transposed=False) for name, source in floats.items()
    }
    others = {
        "layers.attention.sinks": Source("model.layers.{}.self_attn.sinks"),
        "layers.feed_forward.router": Source(f"{block}.router.weight"),
    }
    return replace(LLAMA_WEIGHTS.including(others | floats | biases), packed=blocks)


PUBLISHED = Published(
    "gpt-oss-20b",
    {
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 24,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "attention_bias": True,
        "swiglu_limit": 7.0,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "rope_theta": 150000,
        "rope_scaling": {**USUAL_ROTARY, "beta_fast": 32.0, "beta_slow": 1.0},
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    20_914_757_184,
)
FAMILIES.add("gpt_oss", Family("gpt_oss", decoder_spec, PUBLISHED, weights))
