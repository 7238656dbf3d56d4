"""PackedOps: the same decoder with this project's operators for attention, norms and rotation (see `kernels`), one node each.

Caches are packed codes in the order that the attention operator reads; nothing is unpacked outside it.
"""

from __future__ import annotations

import torch
from torch import nn

from exporter.decoder.spec import Activation, AttentionSpec, NormSpec, RotarySpec
from exporter.quantize.kv_codec import LayerKvConstants
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.kernels import operators  # noqa: F401  defines the operators
from exporter.targets.executorch.xnnpack.names import KEYS, VALUES
from exporter.targets.executorch.xnnpack.ops import ExecutorchOps
from exporter.targets.executorch.xnnpack.weights import float_product

_OPERATORS = torch.ops.slm


class PackedLayer(nn.Module):
    """One layer's cache: codes uint8 [C, K, bytes] of keys and of values, scales float16 [C, 2 * K] (and zero points [C, 2 * K] behind
    them). The shapes say how much there is; the operator orders it in its own way."""

    def __init__(self, decoder: QuantizedDecoder, layer: int) -> None:
        super().__init__()
        attention, slots, kv_format = (
            decoder.spec.layers[layer].heads,
            decoder.layout[layer].slots,
            decoder.kv_format,
        )
        width = attention.head_dim * kv_format.bits // 8
        for name in (KEYS, VALUES):
            self.register_buffer(name, torch.zeros(slots, attention.kv_heads, width, dtype=torch.uint8))
        sides = 4 if kv_format.zero_point else 2
        self.register_buffer("scales", torch.zeros(slots, sides * attention.kv_heads, dtype=torch.float16))


class PackedState(nn.Module):
    """The caches of all layers that attend."""

    def __init__(self, decoder: QuantizedDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.layers = nn.ModuleList(
            PackedLayer(decoder, index) if layer.attention else nn.Module()
            for index, layer in enumerate(decoder.spec.layers)
        )


class PackedOps(ExecutorchOps):
    """See `ExecutorchOps`; norms with a mean are left to ExecuTorch."""

    def rms_norm(self, value: torch.Tensor, gain: str, norm: NormSpec) -> torch.Tensor:
        if norm.groups == 1:
            return _OPERATORS.rms_norm(value, self.vector(gain), norm.eps)
        width = value.shape[-1] // norm.groups
        ones = self.constants.constant(f"ones.{width}", lambda: torch.ones(width))
        normed = _OPERATORS.rms_norm(value.unflatten(-1, (norm.groups, width)), ones, norm.eps)
        return normed.flatten(-2) * self.vector(gain)

    def rotary(self, value: torch.Tensor, rotary: RotarySpec) -> torch.Tensor:
        return _OPERATORS.rotary(value, *self._angles(rotary))

    def activation(self, value: torch.Tensor, kind: Activation) -> torch.Tensor:
        return _OPERATORS.silu(value) if kind is Activation.SILU else super().activation(value, kind)

    def attention(
        self, layer: int, attention: AttentionSpec, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        state, decoder = self.state, self.decoder
        assert isinstance(state, PackedState)
        cache, ring, kv_format = state.layers[layer], decoder.layout[layer], decoder.kv_format
        constants = self.constants.constant(f"kv.{layer}", lambda: _stacked(decoder.kv_constants[layer]))
        slopes = self.constants.constant(f"slopes.{layer}", lambda: torch.tensor(attention.distance_slopes or ()))
        fine = self._product is float_product  # INT8 activations are coarser than 16 bits anyway
        settings = (kv_format.bits, ring.window or 0, ring.sinks, kv_format.zero_point, kv_format.rotation, fine)
        scores = (attention.score_scale, attention.score_cap or 0.0)
        stored = (cache.keys, cache.values, cache.scales, constants, slopes, self.learned_sinks(layer, attention))
        return _OPERATORS.attention(query, key, value, self.chunk.start, *stored, *settings, *scores).flatten(1)


def _stacked(constants: LayerKvConstants) -> torch.Tensor:
    """float32 [4, K, Hd]: centre and balance of keys, then of values."""
    key, value = constants.key, constants.value
    return torch.stack((key.center, key.balance, value.center, value.balance))
