"""The numbers of a decoder as fp16 alone holds them, for a package that has nothing wider. The oracle then computes with them too, so
that a difference between package and oracle is never one of constants."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from exporter.decoder.spec import AttentionSpec, LayerSpec, NormSpec
from exporter.decoder.weights import DecoderWeights
from exporter.quantize.kv_codec import ChannelConstants, LayerKvConstants
from exporter.quantize.quantized_checkpoint import QuantizedDecoder


def rounded_to_half(decoder: QuantizedDecoder) -> QuantizedDecoder:
    """Vectors, centres of the cache, epsilons, score scales, caps and slopes rounded to fp16. Balances become powers of two: any positive
    balance is exact, and of these the inverse is too."""
    vectors = {name: values.half().float() for name, values in decoder.weights.vectors.items()}
    return replace(
        decoder,
        spec=replace(
            decoder.spec,
            layers=tuple(_layer(layer) for layer in decoder.spec.layers),
            embedding_norm=_norm_if_any(decoder.spec.embedding_norm),
            final_norm=_norm(decoder.spec.final_norm),
            logits_cap=None if decoder.spec.logits_cap is None else _half(decoder.spec.logits_cap),
        ),
        weights=DecoderWeights(decoder.weights.matrices, vectors),
        kv_constants=tuple(
            LayerKvConstants(_constants(entry.key), _constants(entry.value)) for entry in decoder.kv_constants
        ),
    )


def _layer(layer: LayerSpec) -> LayerSpec:
    return replace(
        layer,
        attention=None if layer.attention is None else _attention(layer.attention),
        attention_norm=_norm_if_any(layer.attention_norm),
        attention_post_norm=_norm_if_any(layer.attention_post_norm),
        feed_forward_norm=_norm_if_any(layer.feed_forward_norm),
        feed_forward_post_norm=_norm_if_any(layer.feed_forward_post_norm),
    )


def _attention(attention: AttentionSpec) -> AttentionSpec:
    slopes = None if attention.distance_slopes is None else tuple(map(_half, attention.distance_slopes))
    cap = None if attention.score_cap is None else _half(attention.score_cap)
    scale = _half(attention.score_scale)
    rounded = replace(attention, score_scale=scale, score_cap=cap, distance_slopes=slopes)
    return replace(rounded, query_key_norm=_norm_if_any(attention.query_key_norm))


def _norm(norm: NormSpec) -> NormSpec:
    """A package holds the root of epsilon: see `MilOps`."""
    return replace(norm, eps=_half(math.sqrt(norm.eps)) ** 2)


def _norm_if_any(norm: NormSpec | None) -> NormSpec | None:
    return None if norm is None else _norm(norm)


def _half(number: float) -> float:
    return float(torch.tensor(number).half())


def _constants(constants: ChannelConstants) -> ChannelConstants:
    balance = torch.exp2(torch.round(torch.log2(constants.balance)))
    return replace(constants, center=constants.center.half().float(), balance=balance)
