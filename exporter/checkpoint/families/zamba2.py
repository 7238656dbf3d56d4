"""Zamba 2: Mamba 2 layers, before some of which stands a block of attention and feed-forward that those layers share, each with
adapters of its own."""

from dataclasses import replace

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import DenseTraits, dense_decoder, full_attention, layer_count
from exporter.checkpoint.family import FAMILIES, Family, Published
from exporter.checkpoint.recurrent import dual_weights, inner_channels, layer_kinds, read_dual
from exporter.checkpoint.rotary import read_rotary
from exporter.checkpoint.weight_map import Source, WeightMap, fused
from exporter.decoder.recurrence import SharedBlock, StateSpaceDual
from exporter.decoder.spec import DecoderSpec, LayerSpec, NormSpec

RECURRENT, HYBRID = "linear_attention", "hybrid"
DEFAULT_KINDS = [RECURRENT, *([RECURRENT] * 5 + [HYBRID]) * 7, *[RECURRENT] * 4, HYBRID, *[RECURRENT] * 3, HYBRID]
DEFAULT_KINDS += [RECURRENT] * 2
GATED_NORM_EPS = 1e-5
NAMES = {
    "num_heads": "n_mamba_heads",
    "n_groups": "mamba_ngroups",
    "state_size": "mamba_d_state",
    "head_dim": "mamba_headdim",
    "conv_kernel": "mamba_d_conv",
    "use_bias": "add_bias_linear",
    "expand": "mamba_expand",
}
ENDS = {
    "embedding": Source("model.embed_tokens.weight"),
    "final_norm": Source("model.final_layernorm.weight"),
    "head": Source("lm_head.weight"),
}
ADAPTED = {"query": "self_attn.linear_q", "key": "self_attn.linear_k", "value": "self_attn.linear_v"}
ADAPTED |= {"inner": "feed_forward.gate_up_proj"}


def decoder_spec(file: Config) -> DecoderSpec:
    config = usual_names(file)
    if config.flag("use_long_context", False):
        raise config.fault("use_long_context", "rescaled positions are not supported")
    config.refuse("tie_word_embeddings", True)  # transformers then unties the shared blocks as well
    eps, hidden = config.number("rms_norm_eps", 1e-5), config.integer("hidden_size")
    head_dim = 2 * hidden // config.integer("num_attention_heads")
    rotary = read_rotary(config, head_dim) if config.flag("use_mem_rope", False) else None
    count, bias = layer_count(config), config.flag("add_bias_linear", False)
    traits = DenseTraits(
        full_attention(config),
        norm=NormSpec(eps),
        feed_forward_bias=bias,
        rotary=(rotary,) * count,
        score_scales=((head_dim / 2) ** -0.5,) * count,
        activation=config.activation(default="gelu"),
        tied_default=True,
    )
    spec, numbers = dense_decoder(config, "zamba2", traits), shared_numbers(config)
    return replace(
        spec,
        layers=tuple(_layer(config, layer, number, eps) for layer, number in zip(spec.layers, numbers, strict=True)),
    )


def usual_names(file: Config) -> Config:
    heads, hidden = file.integer("num_attention_heads", 32), file.integer("hidden_size", 2560)
    defaults = {"num_attention_heads": heads, "hidden_size": hidden, "max_position_embeddings": 4096}
    defaults |= {"num_hidden_layers": 54, "vocab_size": 32000, "num_key_value_heads": heads}
    config = file.defaulting(**defaults)
    inner = config.integer("intermediate_size", 4 * hidden)
    if 2 * hidden % heads:
        raise file.fault("num_attention_heads", f"{heads} does not divide twice the hidden size {hidden}")
    return config.replacing(head_dim=2 * hidden // heads, intermediate_size=inner)


def kinds(config: Config) -> list[str]:
    return layer_kinds(config, "layers_block_type", (RECURRENT, HYBRID), DEFAULT_KINDS)


def shared_numbers(config: Config) -> list[int | None]:
    """Which shared block stands before each layer: they take turns."""
    blocks, seen, numbers = config.integer("num_mem_blocks", 1), 0, []
    for kind in kinds(config):
        numbers.append(seen % blocks if kind == HYBRID else None)
        seen += kind == HYBRID
    return numbers


def mixer(config: Config) -> StateSpaceDual:
    """Steps are bounded from below. transformers does so in chunks and not in single steps; here both do."""
    named = config.replacing(use_conv_bias=True, hidden_act="silu", mamba_headdim="auto")
    named = named.defaulting(n_mamba_heads=8, mamba_ngroups=1, mamba_d_state=64).named(NAMES)
    dual = read_dual(named, inner_channels(named), GATED_NORM_EPS)
    return replace(dual, shortest_step=config.number("time_step_min", 0.001))


def _layer(config: Config, layer: LayerSpec, number: int | None, eps: float) -> LayerSpec:
    if number is None:
        return LayerSpec(NormSpec(eps), None, None, None, recurrence=mixer(config))
    adapters = config.flag("use_shared_attention_adapter", False)
    shared = SharedBlock(number, eps, config.integer("adapter_rank", 128), adapters)
    return LayerSpec(NormSpec(eps), layer.attention, None, layer.feed_forward, recurrence=mixer(config), shared=shared)


def weights(file: Config) -> WeightMap:
    config = usual_names(file)
    sources, first, turn = dict(ENDS), dict[int, int](), 0
    for index, number in enumerate(shared_numbers(config)):
        inside = f"model.layers.{index}" if number is None else f"model.layers.{index}.mamba_decoder"
        sources |= _numbered(dual_weights(f"{inside}.mamba"), index)
        sources[f"layers.{index}.attention_norm"] = Source(f"{inside}.input_layernorm.weight")
        if number is None:
            continue
        block = f"model.layers.{first.setdefault(number, index)}.shared_transformer"
        sources |= _shared(config, f"shared.{number}", block)
        sources[f"layers.{index}.shared_output"] = Source(f"model.layers.{index}.linear.weight")
        for name, tensor in ADAPTED.items():
            for part, place in (("down", 0), ("up", 1)):
                adapter = Source(f"{block}.{tensor}_adapter_list.{turn}.{place}.weight")
                sources[f"layers.{index}.adapter.{name}_{part}"] = adapter
        turn += 1
    return WeightMap(sources)


def _numbered(names: dict[str, str], index: int) -> dict[str, Source]:
    return {name.replace("layers.", f"layers.{index}.", 1): Source(tensor) for name, tensor in names.items()}


def _shared(config: Config, name: str, block: str) -> dict[str, Source]:
    inner = config.integer("intermediate_size")
    gate, up = fused(inner, inner)
    both = f"{block}.feed_forward.gate_up_proj.weight"
    return {
        f"{name}.attention_norm": Source(f"{block}.input_layernorm.weight"),
        f"{name}.attention.query": Source(f"{block}.self_attn.q_proj.weight"),
        f"{name}.attention.key": Source(f"{block}.self_attn.k_proj.weight"),
        f"{name}.attention.value": Source(f"{block}.self_attn.v_proj.weight"),
        f"{name}.attention.output": Source(f"{block}.self_attn.o_proj.weight"),
        f"{name}.feed_forward_norm": Source(f"{block}.pre_ff_layernorm.weight"),
        f"{name}.feed_forward.gate": Source(both, gate),
        f"{name}.feed_forward.up": Source(both, up),
        f"{name}.feed_forward.down": Source(f"{block}.feed_forward.down_proj.weight"),
    }


PUBLISHED = Published(
    "Zamba2-1.2B",
    {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 38,
        "layers_block_type": ["hybrid" if index in range(5, 38, 6) else "mamba" for index in range(38)],
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "num_mem_blocks": 1,
        "adapter_rank": 128,
        "use_shared_attention_adapter": True,
        "use_mem_rope": True,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "mamba_d_state": 128,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_ngroups": 1,
        "n_mamba_heads": 64,
        "add_bias_linear": False,
    },
    1_215_064_704,
)
FAMILIES.add("zamba2", Family("zamba2", decoder_spec, PUBLISHED, weights))
