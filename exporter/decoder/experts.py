"""Mixtures of experts as data: which experts a token goes to, and the names of their weights. No torch: the plan reads this.

Notation: S tokens, E experts, k of them chosen per token, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class RouterScore(StrEnum):
    """What the router's products become before experts are compared."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class GroupScore(StrEnum):
    """What a group of experts is worth: its best expert (arXiv 2405.04434), or the sum of its best two (arXiv 2412.19437)."""

    BEST = "best"
    BEST_TWO = "best_two"


@dataclass(frozen=True)
class GroupLimit:
    """Experts in `groups` equal runs, of which only `chosen` may serve a token."""

    groups: int
    chosen: int
    score: GroupScore


@dataclass(frozen=True)
class RoutingSpec:
    """How each token finds its `chosen` of `experts`, and what their outputs are weighted by.

    Weights are the scores of the chosen experts; `renormalized` ones sum to one. `selection_bias` is a stored vector [E] that is added
    to scores where experts are compared, and not where they become weights. A constant factor on all weights has no place here: it is
    folded into the experts' last matrices as these are read.
    """

    experts: int
    chosen: int
    score: RouterScore = RouterScore.SOFTMAX
    renormalized: bool = False
    bias: bool = False
    selection_bias: bool = False
    limit: GroupLimit | None = None

    def limited(self, limit: GroupLimit | None) -> RoutingSpec:
        return replace(self, limit=limit)


ROUTER, SELECTION_BIAS, SHARED, SHARED_GATE = "router", "selection_bias", "shared", "shared_gate"


EXPERTS = "experts"


def is_expert(weight: str) -> bool:
    """Whether a weight belongs to an expert that tokens are routed to."""
    return f".{EXPERTS}." in weight


def expert_prefix(block: str, expert: int) -> str:
    """Where the weights of one expert are named: "layers.0.feed_forward" -> "layers.0.feed_forward.experts.3"."""
    return f"{block}.{EXPERTS}.{expert}"
