"""The interface between the one decoder and its interpreters.

`forward.py` calls these methods and never looks inside a tensor, so a tensor is whatever the interpreter likes: a torch tensor
in the oracle, a graph value in a target. Shapes are logical; layout is the interpreter's own affair. Weights are named, as in
`spec.decoder_weights`; an interpreter owns its weight store and its caches.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from exporter.decoder.recurrence import CausalConvolution, SelectiveScan, StateSpaceDual
from exporter.decoder.spec import Activation, AttentionSpec, ExpertsSpec, NormSpec, RotarySpec

Tensor = TypeVar("Tensor")


class Ops(Protocol[Tensor]):
    """One interpreter of the decoder."""

    def embedding(self, token_ids: Tensor, table: str) -> Tensor:
        """Rows of `table` for token ids [S] -> [S, D]."""

    def positions(self, table: str) -> Tensor:
        """Rows of `table` at the chunk's absolute positions -> [S, D]; called after `embedding`."""

    def linear(self, value: Tensor, matrix: str, bias: bool) -> Tensor:
        """[S, in] times `matrix` [out, in] transposed, plus `matrix.bias` if `bias` -> [S, out]."""

    def rms_norm(self, value: Tensor, gain: str, norm: NormSpec) -> Tensor:
        """Normalizes over the last axis and multiplies by `gain`; the shape stays."""

    def layer_norm(self, value: Tensor, gain: str, norm: NormSpec) -> Tensor:
        """Takes the mean off, normalizes over the last axis, multiplies by `gain` and adds `gain.bias` if the norm has one."""

    def split(self, value: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        """[S, n] cut along its channels into parts of these sizes, which sum to n."""

    def join(self, left: Tensor, right: Tensor) -> Tensor:
        """Channels of one beside those of the other: [S, n] and [S, m] -> [S, n + m]."""

    def split_heads(self, value: Tensor, heads: int) -> Tensor:
        """[S, heads * Hd] -> [S, heads, Hd]."""

    def merge_heads(self, value: Tensor) -> Tensor:
        """[S, heads, Hd] -> [S, heads * Hd]."""

    def head_products(self, value: Tensor, prefix: str, name: str, passed: int, keep: bool) -> Tensor:
        """Per head h, the channels of [S, heads, n] behind the first `passed` times the matrix `prefix.h.name` [out, n - passed]
        transposed; the first ones are kept before the product, or dropped -> [S, heads, passed + out] or [S, heads, out]."""

    def rotary(self, value: Tensor, rotary: RotarySpec) -> Tensor:
        """Rotates [S, heads, Hd] by the chunk's absolute positions."""

    def attention(self, layer: int, attention: AttentionSpec, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Stores key and value [S, K, Hd] in the layer's cache through its codec, attends with query [S, H, Hd] over what the
        cache then holds and the window allows -> [S, H * Hd]. Caps and slopes of the scores are the attention's own
        affair. A layer with latents gets the same vectors for both, and caches them once."""

    def causal_convolution(self, layer: int, convolution: CausalConvolution, value: Tensor) -> Tensor:
        """Each channel [S, channels] with its predecessors in the layer's state, which then holds the last ones -> [S, channels]."""

    def selective_scan(
        self, layer: int, scan: SelectiveScan, value: Tensor, step: Tensor, entering: Tensor, leaving: Tensor
    ) -> Tensor:
        """Takes the layer's state through S tokens: channels and their steps before the softplus [S, I], B and C [S, N] -> [S, I]."""

    def state_space_dual(
        self, layer: int, dual: StateSpaceDual, value: Tensor, step: Tensor, entering: Tensor, leaving: Tensor
    ) -> Tensor:
        """The same with a step per head: channels [S, H * P], steps before bias and softplus [S, H], B and C [S, G * N]
        -> [S, H * P]."""

    def activation(self, value: Tensor, kind: Activation) -> Tensor:
        """Elementwise; the shape stays."""

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """Elementwise product of equal shapes."""

    def add(self, left: Tensor, right: Tensor) -> Tensor:
        """Elementwise sum of equal shapes."""

    def experts(self, value: Tensor, prefix: str, experts: ExpertsSpec) -> Tensor:
        """Routes each token [S, D] to its experts (weights `prefix.router` and `prefix.experts.N...`) and adds up what these make of
        it, weighted -> [S, D]. Shared experts are not among them."""

    def token_gate(self, value: Tensor, source: Tensor, vector: str) -> Tensor:
        """[S, D] times, per token, the sigmoid of `source` [S, D] times `vector` [1, D] transposed."""

    def logits(self, value: Tensor, table: str, bias: str | None = None) -> Tensor:
        """[S, D] times the head table [V, D] transposed, plus the vector `bias` [V] -> [S, V]; an interpreter may keep the last
        token only."""

    def soft_cap(self, value: Tensor, cap: float) -> Tensor:
        """cap * tanh(value / cap), elementwise."""
