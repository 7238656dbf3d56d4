"""The numbers of a decoder as fp16 alone holds them, for a package that has nothing wider. The oracle then computes with them too, so
that a difference between package and oracle is never one of constants."""

from __future__ import annotations

from dataclasses import replace

import torch

from exporter.decoder.spec import LayerSpec
from exporter.decoder.weights import DecoderWeights
from exporter.quantize.kv_codec import ChannelConstants, LayerKvConstants
from exporter.quantize.quantized_checkpoint import QuantizedDecoder


def rounded_to_half(decoder: QuantizedDecoder) -> QuantizedDecoder:
    """Vectors, centres of the cache and score scales rounded to fp16. Balances become powers of two: any positive balance is exact, and
    of these the inverse is too."""
    vectors = {name: values.half().float() for name, values in decoder.weights.vectors.items()}
    return replace(
        decoder,
        spec=replace(decoder.spec, layers=tuple(_layer(layer) for layer in decoder.spec.layers)),
        weights=DecoderWeights(decoder.weights.matrices, vectors),
        kv_constants=tuple(
            LayerKvConstants(_constants(entry.key), _constants(entry.value)) for entry in decoder.kv_constants
        ),
    )


def _layer(layer: LayerSpec) -> LayerSpec:
    scale = float(torch.tensor(layer.attention.score_scale).half())
    return replace(layer, attention=replace(layer.attention, score_scale=scale))


def _constants(constants: ChannelConstants) -> ChannelConstants:
    balance = torch.exp2(torch.round(torch.log2(constants.balance)))
    return replace(constants, center=constants.center.half().float(), balance=balance)
