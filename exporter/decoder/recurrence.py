"""Mixers of tokens that carry a state of fixed size instead of a cache: as data. Imports nothing of the project.

Notation: S tokens in this chunk, D hidden size, I inner channels, N state size, G groups, H heads of P channels each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

CONVOLUTION, SCAN = "convolution", "scan"
"""Names of a layer's states."""


@dataclass(frozen=True)
class StateSpec:
    """One buffer, float32, that a layer takes over from token to token; zeros where a conversation begins."""

    name: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return 4 * math.prod(self.shape)


@dataclass(frozen=True)
class CausalConvolution:
    """Depthwise convolution over tokens: every channel's last `taps` values, its own included, times weights of its own.

    The state holds what the next chunk still needs: the last taps - 1 tokens [taps - 1, channels].
    """

    channels: int
    taps: int
    bias: bool

    @property
    def state(self) -> StateSpec:
        return StateSpec(CONVOLUTION, (self.taps - 1, self.channels))


@dataclass(frozen=True)
class ShortConvolution:
    """output(gate * convolution(input gate * x)), all three from one projection (LFM2)."""

    convolution: CausalConvolution
    bias: bool = False
    kind: Literal["short_convolution"] = "short_convolution"

    @property
    def input_size(self) -> int:
        """Rows of the projection: input gate, gate, x."""
        return 3 * self.convolution.channels

    @property
    def output_size(self) -> int:
        return self.convolution.channels

    @property
    def states(self) -> tuple[StateSpec, ...]:
        return (self.convolution.state,)


@dataclass(frozen=True)
class SelectiveScan:
    """Mamba (arXiv 2312.00752): every channel has `state_size` states, each with a decay of its own,

        h = exp(step * A) * h + step * B * x,    y = C h + D x

    where the channel's step, B [N] and C [N] follow from the token. `step_rank` is the width that steps are made from; with
    `parameter_norm_eps`, that vector, B and C are normalized first (Jamba).
    """

    convolution: CausalConvolution
    state_size: int
    step_rank: int
    bias: bool = False
    parameter_norm_eps: float | None = None
    kind: Literal["selective_scan"] = "selective_scan"

    @property
    def channels(self) -> int:
        return self.convolution.channels

    @property
    def input_size(self) -> int:
        """Rows of the projection: x and its gate."""
        return 2 * self.channels

    @property
    def output_size(self) -> int:
        return self.channels

    @property
    def parameter_sizes(self) -> tuple[int, int, int]:
        """What is projected from x: the origin of the steps, B, C."""
        return self.step_rank, self.state_size, self.state_size

    @property
    def states(self) -> tuple[StateSpec, ...]:
        return (self.convolution.state, StateSpec(SCAN, (self.channels, self.state_size)))


@dataclass(frozen=True)
class StateSpaceDual:
    """Mamba 2 (arXiv 2405.21060): the channels of a head share decay and step, the heads of a group B and C. So a whole chunk is a few
    matrix products. `norm_eps` normalizes each group of channels of the result, with its gate multiplied in before that, or after it
    (`norm_before_gate`). A step is never shorter than `shortest_step`.
    """

    convolution: CausalConvolution
    heads: int
    head_dim: int
    groups: int
    state_size: int
    bias: bool = False
    output_bias: bool = False
    norm_eps: float | None = None
    norm_before_gate: bool = False
    shortest_step: float = 0.0
    kind: Literal["state_space_dual"] = "state_space_dual"

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def group_heads(self) -> int:
        """Heads that share B and C."""
        return self.heads // self.groups

    @property
    def input_sizes(self) -> tuple[int, int, int]:
        """Rows of the projection: gate, what is convolved, steps."""
        return self.channels, self.convolution.channels, self.heads

    @property
    def input_size(self) -> int:
        return sum(self.input_sizes)

    @property
    def output_size(self) -> int:
        return self.channels

    @property
    def convolved_sizes(self) -> tuple[int, int, int]:
        """x, B and C."""
        shared = self.groups * self.state_size
        return self.channels, shared, shared

    @property
    def states(self) -> tuple[StateSpec, ...]:
        scan = StateSpec(SCAN, (self.groups, self.group_heads, self.state_size, self.head_dim))
        return (self.convolution.state, scan)


@dataclass(frozen=True)
class SharedBlock:
    """Attention and a feed-forward block whose weights several layers share, before the recurrence of each (Zamba 2, arXiv 2411.15242).
    It reads the hidden states beside the embeddings [S, 2 D]; what it makes is added to what the recurrence reads and to nothing else.

    `number` says which of the decoder's shared blocks it is. Each layer adds products of `adapter_rank` of its own to the projections
    of the feed-forward block, and with `attention_adapters` to those of the attention.
    """

    number: int
    norm_eps: float
    adapter_rank: int
    attention_adapters: bool = False


Recurrence = ShortConvolution | SelectiveScan | StateSpaceDual


@dataclass(frozen=True)
class RecurrentWeight:
    """A weight below a layer's `recurrence.`; `matrix` says that it is quantized. What decides over the states keeps its precision."""

    name: str
    shape: tuple[int, ...]
    matrix: bool = False


def recurrent_weights(mixer: Recurrence, hidden: int) -> tuple[RecurrentWeight, ...]:
    """Every weight of a mixer, in the order in which the forward pass uses them."""
    convolution = mixer.convolution
    output_bias = mixer.output_bias if isinstance(mixer, StateSpaceDual) else mixer.bias
    return (
        *_projection("input", mixer.input_size, hidden, mixer.bias),
        RecurrentWeight("convolution", (convolution.channels, 1, convolution.taps)),
        *([RecurrentWeight("convolution.bias", (convolution.channels,))] if convolution.bias else []),
        *_own_weights(mixer),
        *_projection("output", hidden, mixer.output_size, output_bias),
    )


def _projection(name: str, rows: int, columns: int, bias: bool) -> tuple[RecurrentWeight, ...]:
    matrix = RecurrentWeight(name, (rows, columns), matrix=True)
    return (matrix, RecurrentWeight(f"{name}.bias", (rows,))) if bias else (matrix,)


def _own_weights(mixer: Recurrence) -> tuple[RecurrentWeight, ...]:
    if isinstance(mixer, SelectiveScan):
        normed = mixer.parameter_norm_eps is not None
        names = ("step_norm", "input_norm", "output_norm") if normed else ()
        return (
            *_projection("parameters", sum(mixer.parameter_sizes), mixer.channels, bias=False),
            *(RecurrentWeight(name, (size,)) for name, size in zip(names, mixer.parameter_sizes, strict=False)),
            *_projection("step", mixer.channels, mixer.step_rank, bias=True),
            RecurrentWeight("decay", (mixer.channels, mixer.state_size)),
            RecurrentWeight("skip", (mixer.channels,)),
        )
    if isinstance(mixer, StateSpaceDual):
        norm = () if mixer.norm_eps is None else (RecurrentWeight("norm", (mixer.channels,)),)
        return (*(RecurrentWeight(name, (mixer.heads,)) for name in ("step_bias", "decay", "skip")), *norm)
    return ()
