"""What a model family is: a function from `config.json` to a DecoderSpec, and the checkpoint's names of its weights."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exporter.checkpoint.config import Config
from exporter.decoder.spec import (
    AttentionSpec,
    DecoderSpec,
    FeedForwardSpec,
    LayerSpec,
    NormSpec,
)
from exporter.errors import CheckpointError
from exporter.registry import Registry, did_you_mean


@dataclass(frozen=True)
class Family:
    """One `model_type`. `tensor_name` maps a canonical weight name to the name in the safetensors files."""

    model_type: str
    decoder_spec: Callable[[Config], DecoderSpec]
    tensor_name: Callable[[str], str]


FAMILIES: Registry[Family] = Registry("model_type")

_LLAMA_LAYER_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "attention.query": "self_attn.q_proj.weight",
    "attention.key": "self_attn.k_proj.weight",
    "attention.value": "self_attn.v_proj.weight",
    "attention.query.bias": "self_attn.q_proj.bias",
    "attention.key.bias": "self_attn.k_proj.bias",
    "attention.value.bias": "self_attn.v_proj.bias",
    "attention.query_norm": "self_attn.q_norm.weight",
    "attention.key_norm": "self_attn.k_norm.weight",
    "attention.output": "self_attn.o_proj.weight",
    "attention.output.bias": "self_attn.o_proj.bias",
    "feed_forward_norm": "post_attention_layernorm.weight",
    "feed_forward.gate": "mlp.gate_proj.weight",
    "feed_forward.up": "mlp.up_proj.weight",
    "feed_forward.down": "mlp.down_proj.weight",
    "feed_forward.gate.bias": "mlp.gate_proj.bias",
    "feed_forward.up.bias": "mlp.up_proj.bias",
    "feed_forward.down.bias": "mlp.down_proj.bias",
}

_LLAMA_NAMES = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}


def llama_tensor_name(name: str) -> str:
    """The naming that Llama introduced and most dense families share."""
    if name in _LLAMA_NAMES:
        return _LLAMA_NAMES[name]
    _, index, rest = name.split(".", 2)
    return f"model.layers.{index}.{_LLAMA_LAYER_NAMES[rest]}"


@dataclass(frozen=True)
class DenseTraits:
    """What tells one Llama-shaped family from another."""

    windows: tuple[int | None, ...]
    query_key_norm: bool = False
    query_key_value_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    kv_heads_default_to_heads: bool = False
    head_dim: int | None = None
    """Head dimension when the config names none; None means hidden size over heads."""


def layer_count(config: Config) -> int:
    return config.integer("num_hidden_layers")


def windows_from_layer_types(config: Config, default: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Per-layer windows from `layer_types` when the config lists them, else `default`."""
    kinds = config.get("layer_types")
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != layer_count(config):
        raise config.fault("layer_types", f"must list {layer_count(config)} layers, one per hidden layer")
    windows: list[int | None] = []
    for kind in kinds:
        if kind == "sliding_attention":
            windows.append(config.integer("sliding_window"))
        elif kind == "full_attention":
            windows.append(None)
        else:
            raise config.fault(
                "layer_types", f"unsupported kind {kind!r}; full_attention and sliding_attention are known"
            )
    return tuple(windows)


def dense_decoder(config: Config, family: str, traits: DenseTraits) -> DecoderSpec:
    """A Llama-shaped decoder: pre-norm, rotary grouped-query attention, gated feed-forward."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    ungrouped = traits.kv_heads_default_to_heads or "num_key_value_heads" in config.values  # null means ungrouped
    kv_heads = config.integer("num_key_value_heads", heads if ungrouped else None)
    if heads % kv_heads:
        raise config.fault("num_key_value_heads", f"{kv_heads} does not divide num_attention_heads={heads}")
    if config.get("head_dim", traits.head_dim) is None and hidden % heads:
        raise config.fault(
            "num_attention_heads", f"{heads} does not divide hidden_size={hidden}, and head_dim is absent"
        )
    head_dim = config.integer("head_dim", traits.head_dim or hidden // heads)
    if head_dim % 2:
        raise config.fault("head_dim", f"{head_dim} is odd; rotary embedding needs pairs of channels")
    norm = NormSpec(config.number("rms_norm_eps", 1e-6))
    feed_forward = FeedForwardSpec(config.integer("intermediate_size"), config.activation(), traits.feed_forward_bias)
    rotary = config.rotary(head_dim)
    layers = tuple(
        LayerSpec(
            norm,
            AttentionSpec(
                heads,
                kv_heads,
                head_dim,
                head_dim**-0.5,
                rotary,
                window,
                norm if traits.query_key_norm else None,
                traits.query_key_value_bias,
                traits.output_bias,
            ),
            norm,
            feed_forward,
        )
        for window in traits.windows
    )
    return DecoderSpec(
        family,
        config.integer("vocab_size"),
        hidden,
        config.integer("max_position_embeddings"),
        layers,
        norm,
        config.flag("tie_word_embeddings", False),
    )


def find_family(config: Config) -> Family:
    """The family of a config. Raises CheckpointError naming the nearest supported model_type."""
    _load_all()
    if config.get("model_type") is None:
        raise config.fault("model_type", f"is missing; supported: {', '.join(FAMILIES.names())}")
    model_type = config.text("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"{config.source}: model_type: {model_type!r} is not supported", did_you_mean(model_type, FAMILIES.names())
        )
    return FAMILIES.get(model_type)


def _load_all() -> None:
    from exporter.checkpoint import families

    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{module.name}")


def read_spec(folder: Path) -> DecoderSpec:
    """The DecoderSpec alone: reads `config.json` and no weight."""
    config = Config.read(folder / "config.json")
    return find_family(config).decoder_spec(config)
