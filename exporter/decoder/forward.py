"""The decoder, once. Every target and the oracle run these functions against their own `Ops`."""

from __future__ import annotations

from exporter.decoder.experts import SHARED, SHARED_GATE
from exporter.decoder.latent_forward import latent_attention
from exporter.decoder.mixers import mix_by_recurrence
from exporter.decoder.ops import Ops, Tensor
from exporter.decoder.shared_block import shared_block
from exporter.decoder.spec import (
    AttentionSpec,
    DecoderSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LayerSpec,
    NormKind,
    NormSpan,
    NormSpec,
)
from exporter.decoder.weight_names import EMBEDDING, EMBEDDING_NORM, FINAL_NORM, HEAD_BIAS, POSITIONS, head_name


def decode_chunk(ops: Ops[Tensor], spec: DecoderSpec, token_ids: Tensor) -> Tensor:
    """One chunk of S tokens at the position that `ops` stands at: token ids [S] -> logits [S, V]."""
    return decode_head(ops, spec, decode_hidden(ops, spec, token_ids))


def decode_hidden(ops: Ops[Tensor], spec: DecoderSpec, token_ids: Tensor) -> Tensor:
    """The chunk's hidden states before the final norm: token ids [S] -> [S, D]."""
    hidden = embedded = decode_embedding(ops, spec, token_ids)
    for index in range(len(spec.layers)):
        hidden = decode_layer(ops, spec, index, hidden, embedded)
    return hidden


def decode_embedding(ops: Ops[Tensor], spec: DecoderSpec, token_ids: Tensor) -> Tensor:
    """What the first layer reads: token ids [S] -> [S, D]."""
    hidden = ops.embedding(token_ids, EMBEDDING)
    if spec.learned_positions:
        hidden = ops.add(hidden, ops.positions(POSITIONS))
    return _norm(ops, hidden, EMBEDDING_NORM, spec.embedding_norm)


def decode_layer(ops: Ops[Tensor], spec: DecoderSpec, index: int, hidden: Tensor, embedded: Tensor) -> Tensor:
    """One layer with its residual connections: [S, D], and what the first layer read -> [S, D]."""
    layer, prefix = spec.layers[index], f"layers.{index}"
    if layer.shared is not None and layer.recurrence is not None:
        read = ops.add(hidden, shared_block(ops, layer, layer.shared, index, ops.join(hidden, embedded)))
        normed = _norm(ops, read, f"{prefix}.attention_norm", layer.attention_norm)
        return ops.add(hidden, mix_by_recurrence(ops, layer.recurrence, index, normed))
    normed = _norm(ops, hidden, f"{prefix}.attention_norm", layer.attention_norm)
    mixed = _norm(ops, _mixed(ops, layer, index, normed), f"{prefix}.attention_post_norm", layer.attention_post_norm)
    if layer.parallel:
        beside = normed if layer.feed_forward_norm is None else hidden
        return ops.add(ops.add(hidden, mixed), _feed_forward(ops, layer, prefix, beside))
    hidden = ops.add(hidden, mixed)
    if layer.feed_forward is None:
        return hidden
    return ops.add(hidden, _feed_forward(ops, layer, prefix, hidden))


def decode_head(ops: Ops[Tensor], spec: DecoderSpec, hidden: Tensor) -> Tensor:
    """Final norm and logits: [S, D] -> [S, V]."""
    logits = ops.logits(decode_final_norm(ops, spec, hidden), head_name(spec), HEAD_BIAS if spec.head_bias else None)
    return logits if spec.logits_cap is None else ops.soft_cap(logits, spec.logits_cap)


def decode_final_norm(ops: Ops[Tensor], spec: DecoderSpec, hidden: Tensor) -> Tensor:
    """What the head reads: [S, D] -> [S, D]."""
    return _norm(ops, hidden, FINAL_NORM, spec.final_norm)


def _norm(ops: Ops[Tensor], value: Tensor, gain: str, norm: NormSpec | None) -> Tensor:
    if norm is None:
        return value
    return ops.rms_norm(value, gain, norm) if norm.kind is NormKind.RMS else ops.layer_norm(value, gain, norm)


def _mixed(ops: Ops[Tensor], layer: LayerSpec, index: int, value: Tensor) -> Tensor:
    """What a layer's tokens learn of one another: [S, D] -> [S, D]."""
    if layer.recurrence is None:
        return _attention(ops, layer.heads, index, value)
    recurred = mix_by_recurrence(ops, layer.recurrence, index, value)
    return recurred if layer.attention is None else ops.add(recurred, _attention(ops, layer.attention, index, value))


def _attention(ops: Ops[Tensor], attention: AttentionSpec, index: int, value: Tensor) -> Tensor:
    if attention.latent is not None:
        return latent_attention(ops, attention, attention.latent, index, value)
    prefix, bias = f"layers.{index}.attention", attention.query_key_value_bias
    query, key, cached_value = (ops.linear(value, f"{prefix}.{name}", bias) for name in ("query", "key", "value"))
    query = _heads(ops, attention, query, f"{prefix}.query_norm", attention.query_heads)
    key = _heads(ops, attention, key, f"{prefix}.key_norm", attention.kv_heads)
    cached_value = ops.split_heads(cached_value, attention.kv_heads)
    if attention.rotary is not None:
        query, key = ops.rotary(query, attention.rotary), ops.rotary(key, attention.rotary)
    mixed = ops.attention(index, attention, query, key, cached_value)
    return ops.linear(mixed, f"{prefix}.output", attention.output_bias)


def _heads(ops: Ops[Tensor], attention: AttentionSpec, value: Tensor, gain: str, heads: int) -> Tensor:
    """Queries or keys [S, heads * Hd] -> [S, heads, Hd], normalized whole or by head where the layer does so."""
    if attention.query_key_norm_span is NormSpan.PROJECTION:
        return ops.split_heads(_norm(ops, value, gain, attention.query_key_norm), heads)
    return _norm(ops, ops.split_heads(value, heads), gain, attention.query_key_norm)


def _feed_forward(ops: Ops[Tensor], layer: LayerSpec, prefix: str, value: Tensor) -> Tensor:
    block, name = layer.feed_forward, f"{prefix}.feed_forward"
    assert block is not None
    value = _norm(ops, value, f"{name}_norm", layer.feed_forward_norm)
    mixed = _experts(ops, block, name, value) if isinstance(block, ExpertsSpec) else _dense(ops, block, name, value)
    return _norm(ops, mixed, f"{name}_post_norm", layer.feed_forward_post_norm)


def _experts(ops: Ops[Tensor], block: ExpertsSpec, prefix: str, value: Tensor) -> Tensor:
    mixed = ops.experts(value, prefix, block)
    if block.shared is None:
        return mixed
    shared = _dense(ops, block.shared, f"{prefix}.{SHARED}", value)
    if block.shared_gate:
        shared = ops.token_gate(shared, value, f"{prefix}.{SHARED_GATE}")
    return ops.add(mixed, shared)


def _dense(ops: Ops[Tensor], block: FeedForwardSpec, prefix: str, value: Tensor) -> Tensor:
    if not block.gated:
        inner = ops.activation(ops.linear(value, f"{prefix}.up", block.bias), block.activation)
        return ops.linear(inner, f"{prefix}.down", block.bias)
    gate = ops.activation(ops.linear(value, f"{prefix}.gate", block.bias), block.activation)
    inner = ops.multiply(gate, ops.linear(value, f"{prefix}.up", block.bias))
    return ops.linear(inner, f"{prefix}.down", block.bias)
