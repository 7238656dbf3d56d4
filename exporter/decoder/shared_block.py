"""A block that layers share, once, against `Ops`; see `recurrence.SharedBlock`."""

from __future__ import annotations

from exporter.decoder.ops import Ops, Tensor
from exporter.decoder.recurrence import SharedBlock
from exporter.decoder.spec import AttentionSpec, FeedForwardSpec, LayerSpec, NormSpec


def shared_block(ops: Ops[Tensor], layer: LayerSpec, shared: SharedBlock, index: int, value: Tensor) -> Tensor:
    """Hidden states beside embeddings [S, 2 D] -> [S, D]."""
    name, adapter, norm = f"shared.{shared.number}", f"layers.{index}.adapter", NormSpec(shared.norm_eps)
    assert isinstance(layer.feed_forward, FeedForwardSpec)
    normed = ops.rms_norm(value, f"{name}.attention_norm", norm)
    attended = _attention(ops, layer.heads, index, f"{name}.attention", adapter, shared.attention_adapters, normed)
    normed = ops.rms_norm(attended, f"{name}.feed_forward_norm", norm)
    made = _feed_forward(ops, layer.feed_forward, f"{name}.feed_forward", adapter, normed)
    return ops.linear(made, f"layers.{index}.shared_output", False)


def _attention(
    ops: Ops[Tensor], attention: AttentionSpec, index: int, name: str, adapter: str, adapted: bool, value: Tensor
) -> Tensor:
    sides = ("query", "key", "value")
    projected = [ops.linear(value, f"{name}.{side}", False) for side in sides]
    if adapted:
        added = [_adapter(ops, f"{adapter}.{side}", value) for side in sides]
        projected = [ops.add(part, more) for part, more in zip(projected, added, strict=True)]
    heads = (attention.query_heads, attention.kv_heads, attention.kv_heads)
    query, key, cached_value = (ops.split_heads(part, count) for part, count in zip(projected, heads, strict=True))
    if attention.rotary is not None:
        query, key = ops.rotary(query, attention.rotary), ops.rotary(key, attention.rotary)
    return ops.linear(ops.attention(index, attention, query, key, cached_value), f"{name}.output", False)


def _feed_forward(ops: Ops[Tensor], block: FeedForwardSpec, name: str, adapter: str, value: Tensor) -> Tensor:
    gate, up = ops.linear(value, f"{name}.gate", block.bias), ops.linear(value, f"{name}.up", block.bias)
    more = ops.split(_adapter(ops, f"{adapter}.inner", value), (block.hidden_size, block.hidden_size))
    inner = ops.multiply(ops.activation(ops.add(gate, more[0]), block.activation), ops.add(up, more[1]))
    return ops.linear(inner, f"{name}.down", block.bias)


def _adapter(ops: Ops[Tensor], name: str, value: Tensor) -> Tensor:
    return ops.linear(ops.linear(value, f"{name}_down", False), f"{name}_up", False)
