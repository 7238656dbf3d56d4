"""Recurrences on torch tensors, for N sequences of S tokens at once. Each takes the state it starts from and returns the one it ends in.

The oracle runs the definitions token by token. What is computed in one go for a whole chunk must equal them.
"""

from __future__ import annotations

import torch

from exporter.decoder.recurrence import StateSpaceDual

BLOCK_TOKENS = 64
"""The closed form compares every token of a block with every other."""


def convolve(
    value: torch.Tensor, past: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depthwise and causal: value [N, S, channels], past [N, taps - 1, channels], weight [channels, 1, taps]."""
    reach = torch.cat((past, value), dim=1)
    convolved = torch.nn.functional.conv1d(reach.transpose(1, 2), weight, bias, groups=weight.shape[0])
    return convolved.transpose(1, 2), reach[:, reach.shape[1] - past.shape[1] :]


def selective_scan(
    value: torch.Tensor,
    step: torch.Tensor,
    entering: torch.Tensor,
    leaving: torch.Tensor,
    decay: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """value and step [N, S, I], entering and leaving [N, S, n], decay [I, n] of negative numbers, state [N, I, n] -> [N, S, I]."""
    outputs = []
    for token in range(value.shape[1]):
        length = step[:, token, :, None]
        state = torch.exp(length * decay) * state + length * value[:, token, :, None] * entering[:, token, None, :]
        outputs.append((state * leaving[:, token, None, :]).sum(-1))
    return torch.stack(outputs, dim=1), state


def dual_steps(
    value: torch.Tensor,
    step: torch.Tensor,
    entering: torch.Tensor,
    leaving: torch.Tensor,
    decay: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """value [N, S, G, R, P] for R heads of a group, step [N, S, G, R], entering and leaving [N, S, G, n], decay [G, R] of negative
    numbers, state [N, G, R, n, P] -> [N, S, G, R, P]."""
    outputs = []
    for token in range(value.shape[1]):
        length = step[:, token, :, :, None, None]
        new = entering[:, token, :, None, :, None] * value[:, token, :, :, None, :]
        state = torch.exp(length * decay[..., None, None]) * state + length * new
        outputs.append((leaving[:, token, :, None, :, None] * state).sum(-2))
    return torch.stack(outputs, dim=1), state


def dual_blocks(
    value: torch.Tensor,
    step: torch.Tensor,
    entering: torch.Tensor,
    leaving: torch.Tensor,
    decay: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`dual_steps` in closed form, block by block (section 6 of arXiv 2405.21060)."""
    outputs = []
    for start in range(0, value.shape[1], BLOCK_TOKENS):
        tokens = slice(start, start + BLOCK_TOKENS)
        given = (value[:, tokens], step[:, tokens], entering[:, tokens], leaving[:, tokens])
        output, state = _dual_block(*given, decay, state)
        outputs.append(output)
    return torch.cat(outputs, dim=1), state


def _dual_block(
    value: torch.Tensor,
    step: torch.Tensor,
    entering: torch.Tensor,
    leaving: torch.Tensor,
    decay: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What token s gave has faded by the decays of tokens s + 1 to t at token t >= s, the state before the block by those up to t. Their
    logarithms are summed from s on, not taken as a difference of two sums from the start, which would cancel where decays are strong.
    All sums are negative, so that nothing overflows."""
    logarithms = (step * decay).permute(0, 2, 3, 1)  # [N, G, R, S]
    faded, causal = logarithms.cumsum(-1), torch.ones(*[value.shape[1]] * 2, dtype=torch.bool).tril()
    between = (logarithms[..., :, None] * causal.tril(-1)).cumsum(-2)
    lengths = step.permute(0, 2, 3, 1)
    weights = between.masked_fill(~causal, -torch.inf).exp() * lengths[..., None, :]
    weights = weights * torch.einsum("btgn,bsgn->bgts", leaving, entering)[:, :, None]
    inside = torch.einsum("bgrts,bsgrp->btgrp", weights, value)
    before = torch.einsum("btgn,bgrnp->btgrp", leaving, state) * faded.exp().permute(0, 3, 1, 2)[..., None]
    remaining = (between[..., -1, :].exp() * lengths).permute(0, 3, 1, 2)[..., None]
    added = torch.einsum("bsgn,bsgrp->bgrnp", entering, value * remaining)
    return inside + before, faded[..., -1, None, None].exp() * state + added


def dual_inputs(
    dual: StateSpaceDual, value: torch.Tensor, step: torch.Tensor, entering: torch.Tensor, leaving: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """[N, S, channels] each, steps as they were projected and biased -> with axes for groups and heads, steps as lengths."""
    heads = (dual.groups, dual.group_heads)
    lengths = torch.nn.functional.softplus(step).clamp_min(dual.shortest_step)
    return (
        value.unflatten(-1, (*heads, dual.head_dim)),
        lengths.unflatten(-1, heads),
        entering.unflatten(-1, (dual.groups, dual.state_size)),
        leaving.unflatten(-1, (dual.groups, dual.state_size)),
    )
