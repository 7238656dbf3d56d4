"""Routing and experts in torch, as the eager interpreters compute them."""

from __future__ import annotations

import torch

from exporter.decoder.experts import GroupLimit, GroupScore, RouterScore, RoutingSpec


def route(
    products: torch.Tensor, routing: RoutingSpec, selection_bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The router's products [S, E] -> numbers of the chosen experts int64 [S, k] and their weights float32 [S, k]."""
    scores = products.softmax(-1) if routing.score is RouterScore.SOFTMAX else products.sigmoid()
    ranked = scores if selection_bias is None else scores + selection_bias
    if routing.limit is not None:
        ranked = ranked.masked_fill(~_eligible(ranked, routing.limit), -torch.inf)
    chosen = ranked.topk(routing.chosen, -1).indices
    weights = scores.gather(-1, chosen)
    return chosen, weights / weights.sum(-1, keepdim=True) if routing.renormalized else weights


def _eligible(ranked: torch.Tensor, limit: GroupLimit) -> torch.Tensor:
    """Which experts belong to a token's best groups: [S, E] -> bool [S, E]."""
    grouped = ranked.unflatten(-1, (limit.groups, -1))
    worth = grouped.amax(-1) if limit.score is GroupScore.BEST else grouped.topk(2, -1).values.sum(-1)
    best = torch.zeros_like(worth, dtype=torch.bool).scatter_(-1, worth.topk(limit.chosen, -1).indices, value=True)
    return best[..., None].expand_as(grouped).flatten(-2)


def bounded(gate: torch.Tensor, up: torch.Tensor, limit: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Gates are bounded from above, the other side from both; None bounds nothing."""
    return (gate, up) if limit is None else (gate.clamp(max=limit), up.clamp(-limit, limit))
