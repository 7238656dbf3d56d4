"""The decoder, once. Every target and the oracle run these functions against their own `Ops`."""

from __future__ import annotations

from exporter.decoder.ops import Ops, Tensor
from exporter.decoder.spec import EMBEDDING, FINAL_NORM, DecoderSpec, FeedForwardSpec, LayerSpec, head_name


def decode_chunk(ops: Ops[Tensor], spec: DecoderSpec, token_ids: Tensor) -> Tensor:
    """One chunk of S tokens at the position that `ops` stands at: token ids [S] -> logits [S, V]."""
    return decode_head(ops, spec, decode_hidden(ops, spec, token_ids))


def decode_hidden(ops: Ops[Tensor], spec: DecoderSpec, token_ids: Tensor) -> Tensor:
    """The chunk's hidden states before the final norm: token ids [S] -> [S, D]."""
    hidden = ops.embedding(token_ids, EMBEDDING)
    for index in range(len(spec.layers)):
        hidden = decode_layer(ops, spec, index, hidden)
    return hidden


def decode_layer(ops: Ops[Tensor], spec: DecoderSpec, index: int, hidden: Tensor) -> Tensor:
    """One pre-norm layer with residual connections: [S, D] -> [S, D]."""
    layer, prefix = spec.layers[index], f"layers.{index}"
    normed = ops.rms_norm(hidden, f"{prefix}.attention_norm", layer.attention_norm)
    hidden = ops.add(hidden, _attention(ops, layer, index, normed))
    normed = ops.rms_norm(hidden, f"{prefix}.feed_forward_norm", layer.feed_forward_norm)
    return ops.add(hidden, _feed_forward(ops, layer.feed_forward, f"{prefix}.feed_forward", normed))


def decode_head(ops: Ops[Tensor], spec: DecoderSpec, hidden: Tensor) -> Tensor:
    """Final norm and logits: [S, D] -> [S, V]."""
    return ops.logits(ops.rms_norm(hidden, FINAL_NORM, spec.final_norm), head_name(spec))


def _attention(ops: Ops[Tensor], layer: LayerSpec, index: int, value: Tensor) -> Tensor:
    attention, prefix = layer.attention, f"layers.{index}.attention"
    bias = attention.query_key_value_bias
    query = ops.split_heads(ops.linear(value, f"{prefix}.query", bias), attention.query_heads)
    key = ops.split_heads(ops.linear(value, f"{prefix}.key", bias), attention.kv_heads)
    cached_value = ops.split_heads(ops.linear(value, f"{prefix}.value", bias), attention.kv_heads)
    if attention.query_key_norm is not None:
        query = ops.rms_norm(query, f"{prefix}.query_norm", attention.query_key_norm)
        key = ops.rms_norm(key, f"{prefix}.key_norm", attention.query_key_norm)
    if attention.rotary is not None:
        query, key = ops.rotary(query, attention.rotary), ops.rotary(key, attention.rotary)
    mixed = ops.attention(index, attention, query, key, cached_value)
    return ops.linear(mixed, f"{prefix}.output", attention.output_bias)


def _feed_forward(ops: Ops[Tensor], block: FeedForwardSpec, prefix: str, value: Tensor) -> Tensor:
    gate = ops.activation(ops.linear(value, f"{prefix}.gate", block.bias), block.activation)
    inner = ops.multiply(gate, ops.linear(value, f"{prefix}.up", block.bias))
    return ops.linear(inner, f"{prefix}.down", block.bias)
