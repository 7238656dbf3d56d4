"""What the two eager interpreters share: everything except positions, attention, and where a recurrence starts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from exporter.decoder.recurrence import CONVOLUTION, SCAN, CausalConvolution, SelectiveScan, StateSpaceDual
from exporter.decoder.scan import convolve, dual_blocks, dual_inputs, selective_scan
from exporter.decoder.spec import Activation, NormSpec, RotarySpec
from exporter.decoder.weights import WeightStore


def normalize(value: torch.Tensor, gain: torch.Tensor, norm: NormSpec) -> torch.Tensor:
    """Root-mean-square normalization over the last axis, or over each of its groups."""
    if norm.groups > 1:
        parts = value.unflatten(-1, (norm.groups, -1))
        return (parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + norm.eps)).flatten(-2) * gain
    return value * torch.rsqrt(value.square().mean(-1, keepdim=True) + norm.eps) * gain


def capped(value: torch.Tensor, cap: float | None) -> torch.Tensor:
    """cap * tanh(value / cap); None caps nothing."""
    return value if cap is None else torch.tanh(value / cap) * cap


def rotate(value: torch.Tensor, rotary: RotarySpec, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotates the leading channels of [..., Hd] by tables that broadcast to [..., dimensions / 2]."""
    rotated, passed = value[..., : rotary.dimensions], value[..., rotary.dimensions :]
    first, second = rotated.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine, passed), dim=-1)


def activate(value: torch.Tensor, kind: Activation) -> torch.Tensor:
    """The feed-forward non-linearity."""
    if kind is Activation.SILU:
        return torch.nn.functional.silu(value)
    if kind is Activation.RELU:
        return torch.relu(value)
    return torch.nn.functional.gelu(value, approximate="tanh" if kind is Activation.GELU_TANH else "none")


Dual = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""`scan.dual_steps` or `scan.dual_blocks`."""


class EagerOps:
    """Token-wise operations in float32 on torch tensors [S, ...] without a batch axis. Recurrences run over the sequences into which an
    interpreter cuts its rows, from the states that it takes and keeps."""

    dual: Dual = staticmethod(dual_blocks)

    def __init__(self, weights: WeightStore) -> None:
        self.weights = weights

    def embedding(self, token_ids: torch.Tensor, table: str) -> torch.Tensor:
        return self.weights.rows(table, token_ids)

    def linear(self, value: torch.Tensor, matrix: str, bias: bool) -> torch.Tensor:
        product = self.weights.product(value, matrix)
        return product + self.weights.dense(f"{matrix}.bias") if bias else product

    def rms_norm(self, value: torch.Tensor, gain: str, norm: NormSpec) -> torch.Tensor:
        return normalize(value, self.weights.dense(gain), norm)

    def layer_norm(self, value: torch.Tensor, gain: str, norm: NormSpec) -> torch.Tensor:
        offset = self.weights.dense(f"{gain}.bias") if norm.bias else None
        return torch.nn.functional.layer_norm(value, value.shape[-1:], self.weights.dense(gain), offset, norm.eps)

    def sequences(self, value: torch.Tensor) -> torch.Tensor:
        """[N * S, n] -> [N, S, n]: here all rows are one sequence."""
        return value[None]

    def take_state(self, layer: int, name: str, shape: tuple[int, ...], count: int) -> torch.Tensor:
        """The state [count, *shape] that `count` sequences start from."""
        return torch.zeros(count, *shape)

    def keep_state(self, layer: int, name: str, state: torch.Tensor) -> None:
        """What the sequences end in."""

    def split(self, value: torch.Tensor, sizes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        return value.split(sizes, dim=-1)

    def join(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.cat((left, right), dim=-1)

    def causal_convolution(self, layer: int, convolution: CausalConvolution, value: torch.Tensor) -> torch.Tensor:
        rows, name = self.sequences(value), f"layers.{layer}.recurrence.convolution"
        bias = self.weights.dense(f"{name}.bias") if convolution.bias else None
        past = self.take_state(layer, CONVOLUTION, convolution.state.shape, len(rows))
        convolved, state = convolve(rows, past, self.weights.dense(name), bias)
        self.keep_state(layer, CONVOLUTION, state)
        return convolved.flatten(0, 1)

    def selective_scan(
        self,
        layer: int,
        scan: SelectiveScan,
        value: torch.Tensor,
        step: torch.Tensor,
        entering: torch.Tensor,
        leaving: torch.Tensor,
    ) -> torch.Tensor:
        prefix, rows = f"layers.{layer}.recurrence", self.sequences(value)
        lengths, decay = (
            torch.nn.functional.softplus(self.sequences(step)),
            -self.weights.dense(f"{prefix}.decay").exp(),
        )
        state = self.take_state(layer, SCAN, scan.states[1].shape, len(rows))
        given = (rows, lengths, self.sequences(entering), self.sequences(leaving))
        scanned, state = selective_scan(*given, decay, state)
        self.keep_state(layer, SCAN, state)
        return scanned.flatten(0, 1) + self.weights.dense(f"{prefix}.skip") * value

    def state_space_dual(
        self,
        layer: int,
        dual: StateSpaceDual,
        value: torch.Tensor,
        step: torch.Tensor,
        entering: torch.Tensor,
        leaving: torch.Tensor,
    ) -> torch.Tensor:
        prefix, heads = f"layers.{layer}.recurrence", (dual.groups, dual.group_heads)
        biased = step + self.weights.dense(f"{prefix}.step_bias")
        rows = dual_inputs(dual, *(self.sequences(part) for part in (value, biased, entering, leaving)))
        decay = -self.weights.dense(f"{prefix}.decay").exp().view(heads)
        state = self.take_state(layer, SCAN, dual.states[1].shape, len(rows[0]))
        scanned, state = self.dual(*rows, decay, state)
        self.keep_state(layer, SCAN, state)
        skipped = self.weights.dense(f"{prefix}.skip").view(*heads, 1) * rows[0]
        return (scanned + skipped).flatten(2).flatten(0, 1)

    def split_heads(self, value: torch.Tensor, heads: int) -> torch.Tensor:
        return value.unflatten(-1, (heads, -1))

    def activation(self, value: torch.Tensor, kind: Activation) -> torch.Tensor:
        return activate(value, kind)

    def multiply(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left * right

    def add(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + right

    def logits(self, value: torch.Tensor, table: str, bias: str | None = None) -> torch.Tensor:
        product = self.weights.product(value, table)
        return product if bias is None else product + self.weights.dense(bias)

    def soft_cap(self, value: torch.Tensor, cap: float) -> torch.Tensor:
        return capped(value, cap)
