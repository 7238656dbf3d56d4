"""What the two eager interpreters share: everything except positions, attention, and where a recurrence starts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from exporter.decoder.eager_experts import bounded, route
from exporter.decoder.experts import ROUTER, SELECTION_BIAS, expert_prefix
from exporter.decoder.recurrence import CONVOLUTION, SCAN, CausalConvolution, SelectiveScan, StateSpaceDual
from exporter.decoder.scan import ScanInputs, convolve, dual_blocks, dual_inputs, selective_scan
from exporter.decoder.spec import Activation, ExpertsSpec, NormSpec, RotarySpec
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


def softmax_beside(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the last axis of [..., C]; learned sinks, which broadcast to [..., 1], take their part of the sum."""
    if sinks is None:
        return scores.softmax(-1)
    beside = sinks.expand(*scores.shape[:-1], 1)
    return torch.cat((scores, beside), -1).softmax(-1)[..., :-1]


def rotate(value: torch.Tensor, rotary: RotarySpec, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotates the leading channels of [..., Hd] by tables that broadcast to [..., dimensions / 2]."""
    rotated, passed = value[..., : rotary.dimensions], value[..., rotary.dimensions :]
    first, second = rotated.chunk(2, dim=-1)
    parts = (first * cosine - second * sine, second * cosine + first * sine, passed)
    return torch.cat(parts if passed.shape[-1] else parts[:2], dim=-1)


QUICK_GELU_SLOPE = 1.702


def activate(value: torch.Tensor, kind: Activation) -> torch.Tensor:
    """The feed-forward non-linearity."""
    if kind is Activation.SILU:
        return torch.nn.functional.silu(value)
    if kind is Activation.RELU:
        return torch.relu(value)
    if kind is Activation.QUICK_GELU:
        return value * torch.sigmoid(QUICK_GELU_SLOPE * value)
    return torch.nn.functional.gelu(value, approximate="tanh" if kind is Activation.GELU_TANH else "none")


Dual = Callable[[ScanInputs, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
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
        lengths = torch.nn.functional.softplus(step)
        given = self._scan_inputs(layer, value, lengths, entering, leaving)
        state = self.take_state(layer, SCAN, scan.states[1].shape, len(given.value))
        scanned, state = selective_scan(given, state)
        self.keep_state(layer, SCAN, state)
        return scanned.flatten(0, 1) + self.weights.dense(f"layers.{layer}.recurrence.skip") * value

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
        given = dual_inputs(dual, self._scan_inputs(layer, value, biased, entering, leaving))
        state = self.take_state(layer, SCAN, dual.states[1].shape, len(given.value))
        scanned, state = self.dual(given, state)
        self.keep_state(layer, SCAN, state)
        skipped = self.weights.dense(f"{prefix}.skip").view(*heads, 1) * given.value
        return (scanned + skipped).flatten(2).flatten(0, 1)

    def _scan_inputs(self, layer: int, *rows: torch.Tensor) -> ScanInputs:
        """Value, steps, entering and leaving, cut into sequences, with the layer's decay."""
        decay = -self.weights.dense(f"layers.{layer}.recurrence.decay").exp()
        value, step, entering, leaving = (self.sequences(part) for part in rows)
        return ScanInputs(value, step, entering, leaving, decay)

    def join(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.cat((left, right), dim=-1)

    def split_heads(self, value: torch.Tensor, heads: int) -> torch.Tensor:
        return value.unflatten(-1, (heads, -1))

    def merge_heads(self, value: torch.Tensor) -> torch.Tensor:
        return value.flatten(1)

    def head_products(self, value: torch.Tensor, prefix: str, name: str, passed: int, keep: bool) -> torch.Tensor:
        heads = range(value.shape[1])
        products = torch.stack(
            [self.linear(value[:, head, passed:], f"{prefix}.{head}.{name}", False) for head in heads], 1
        )
        return torch.cat((value[..., :passed], products), -1) if keep else products

    def activation(self, value: torch.Tensor, kind: Activation) -> torch.Tensor:
        return activate(value, kind)

    def multiply(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left * right

    def add(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + right

    def experts(self, value: torch.Tensor, prefix: str, experts: ExpertsSpec) -> torch.Tensor:
        chosen, weights = self.routed(value, prefix, experts)
        mixed = torch.zeros_like(value)
        for expert in chosen.unique().tolist():
            tokens, places = (chosen == expert).nonzero(as_tuple=True)
            name = expert_prefix(prefix, expert)
            rows = self.linear(self.expert_inner(value[tokens], name, experts), f"{name}.down", experts.expert.bias)
            mixed.index_add_(0, tokens, rows * weights[tokens, places, None])
        return mixed

    def routed(self, value: torch.Tensor, prefix: str, experts: ExpertsSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Which experts a token goes to, int64 [S, k], and their weights, float32 [S, k]."""
        routing, name = experts.routing, f"{prefix}.{ROUTER}"
        products = self.weights.product(value, name)
        if routing.bias:
            products = products + self.weights.dense(f"{name}.bias")
        offset = self.weights.dense(f"{prefix}.{SELECTION_BIAS}") if routing.selection_bias else None
        return route(products, routing, offset)

    def expert_inner(self, rows: torch.Tensor, name: str, experts: ExpertsSpec) -> torch.Tensor:
        """What the last matrix of one expert reads: [n, D] -> [n, F]."""
        expert = experts.expert
        gate, up = (self.linear(rows, f"{name}.{side}", expert.bias) for side in ("gate", "up"))
        gate, up = bounded(gate, up, experts.limit)
        return activate(gate, expert.activation) * (up + experts.up_offset)

    def token_gate(self, value: torch.Tensor, source: torch.Tensor, vector: str) -> torch.Tensor:
        return value * self.weights.product(source, vector).sigmoid()

    def logits(self, value: torch.Tensor, table: str, bias: str | None = None) -> torch.Tensor:
        product = self.weights.product(value, table)
        return product if bias is None else product + self.weights.dense(bias)

    def soft_cap(self, value: torch.Tensor, cap: float) -> torch.Tensor:
        return capped(value, cap)
