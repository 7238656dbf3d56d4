"""Recurrences on torch tensors, for N sequences of S tokens at once. Each takes the state it starts from and returns the one it ends in.

The oracle runs the definitions token by token. What is computed in one go for a whole chunk must equal them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from exporter.decoder.recurrence import StateSpaceDual

BLOCK_TOKENS = 64
"""The closed form compares every token of a block with every other."""


@dataclass(frozen=True)
class ScanInputs:
    """Of N sequences of S tokens. A selective scan has value and step [N, S, I], entering and leaving [N, S, n], decay [I, n]; Mamba 2 has
    value [N, S, G, R, P] for R heads of a group, step [N, S, G, R], entering and leaving [N, S, G, n], decay [G, R]. Steps are lengths,
    decays negative numbers."""

    value: torch.Tensor
    step: torch.Tensor
    entering: torch.Tensor
    leaving: torch.Tensor
    decay: torch.Tensor

    def blocks(self, tokens: int) -> Iterator[ScanInputs]:
        """So many tokens at a time."""
        rows = (self.value, self.step, self.entering, self.leaving)
        for value, step, entering, leaving in zip(*(part.split(tokens, dim=1) for part in rows), strict=True):
            yield ScanInputs(value, step, entering, leaving, self.decay)


def convolve(
    value: torch.Tensor, past: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Depthwise and causal: value [N, S, channels], past [N, taps - 1, channels], weight [channels, 1, taps]."""
    reach = torch.cat((past, value), dim=1)
    convolved = torch.nn.functional.conv1d(reach.transpose(1, 2), weight, bias, groups=weight.shape[0])
    return convolved.transpose(1, 2), reach[:, reach.shape[1] - past.shape[1] :]


def selective_scan(given: ScanInputs, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """State [N, I, n] -> [N, S, I]."""
    outputs = []
    for token in range(given.value.shape[1]):
        length = given.step[:, token, :, None]
        new = given.value[:, token, :, None] * given.entering[:, token, None, :]
        state = torch.exp(length * given.decay) * state + length * new
        outputs.append((state * given.leaving[:, token, None, :]).sum(-1))
    return torch.stack(outputs, dim=1), state


def dual_steps(given: ScanInputs, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """State [N, G, R, n, P] -> [N, S, G, R, P]."""
    outputs = []
    for token in range(given.value.shape[1]):
        length = given.step[:, token, :, :, None, None]
        new = given.entering[:, token, :, None, :, None] * given.value[:, token, :, :, None, :]
        state = torch.exp(length * given.decay[..., None, None]) * state + length * new
        outputs.append((given.leaving[:, token, :, None, :, None] * state).sum(-2))
    return torch.stack(outputs, dim=1), state


def dual_blocks(given: ScanInputs, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`dual_steps` in closed form, block by block (section 6 of arXiv 2405.21060)."""
    outputs = []
    for block in given.blocks(BLOCK_TOKENS):
        output, state = _dual_block(block, state)
        outputs.append(output)
    return torch.cat(outputs, dim=1), state


def _dual_block(given: ScanInputs, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What token s gave has faded by the decays of tokens s + 1 to t at token t >= s, the state before the block by those up to t. Their
    logarithms are summed from s on, not taken as a difference of two sums from the start, which would cancel where decays are strong.
    All sums are negative, so that nothing overflows."""
    logarithms = (given.step * given.decay).permute(0, 2, 3, 1)  # [N, G, R, S]
    faded, causal = logarithms.cumsum(-1), torch.ones(*[given.value.shape[1]] * 2, dtype=torch.bool).tril()
    between = (logarithms[..., :, None] * causal.tril(-1)).cumsum(-2)
    lengths = given.step.permute(0, 2, 3, 1)
    weights = between.masked_fill(~causal, -torch.inf).exp() * lengths[..., None, :]
    weights = weights * torch.einsum("btgn,bsgn->bgts", given.leaving, given.entering)[:, :, None]
    inside = torch.einsum("bgrts,bsgrp->btgrp", weights, given.value)
    before = torch.einsum("btgn,bgrnp->btgrp", given.leaving, state) * faded.exp().permute(0, 3, 1, 2)[..., None]
    remaining = (between[..., -1, :].exp() * lengths).permute(0, 3, 1, 2)[..., None]
    added = torch.einsum("bsgn,bsgrp->bgrnp", given.entering, given.value * remaining)
    return inside + before, faded[..., -1, None, None].exp() * state + added


def dual_inputs(dual: StateSpaceDual, given: ScanInputs) -> ScanInputs:
    """Channels [N, S, n] each, steps as they were projected and biased -> with axes for groups and heads, steps as lengths."""
    heads = (dual.groups, dual.group_heads)
    return ScanInputs(
        given.value.unflatten(-1, (*heads, dual.head_dim)),
        torch.nn.functional.softplus(given.step).clamp_min(dual.shortest_step).unflatten(-1, heads),
        given.entering.unflatten(-1, (dual.groups, dual.state_size)),
        given.leaving.unflatten(-1, (dual.groups, dual.state_size)),
        given.decay.view(heads),
    )
