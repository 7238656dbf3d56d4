"""Recurrences: what is computed for a whole chunk equals the definition, token by token, whatever the chunks."""

from __future__ import annotations

import pytest
import torch

from exporter.decoder.recurrence import CausalConvolution, StateSpaceDual
from exporter.decoder.scan import (
    BLOCK_TOKENS,
    ScanInputs,
    convolve,
    dual_blocks,
    dual_inputs,
    dual_steps,
    selective_scan,
)

GROUPS, HEADS, STATE, WIDTH = 2, 3, 5, 4


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dual_case(tokens: int, speed: float = 1.0) -> tuple[ScanInputs, torch.Tensor]:
    """Two sequences; steps, inputs and a state from an earlier chunk. `speed` multiplies the decays."""
    value, step = random(2, tokens, GROUPS, HEADS, WIDTH), random(2, tokens, GROUPS, HEADS, seed=1).abs()
    entering, leaving = random(2, tokens, GROUPS, STATE, seed=2), random(2, tokens, GROUPS, STATE, seed=3)
    decay = -random(GROUPS, HEADS, seed=4).exp() * speed
    given = ScanInputs(value, step, entering, leaving, decay)
    return given, random(2, GROUPS, HEADS, STATE, WIDTH, seed=5)


@pytest.mark.parametrize("tokens", [1, 2, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 2 * BLOCK_TOKENS + 7])
def test_the_closed_form_equals_the_definition(tokens: int) -> None:
    case = dual_case(tokens, speed=0.05)
    for found, expected in zip(dual_blocks(*case), dual_steps(*case), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_closed_form_forgets_without_overflow() -> None:
    """Decays whose product underflows: an earlier token counts for nothing, and no number is infinite."""
    given, state = dual_case(2 * BLOCK_TOKENS, speed=500.0)
    single = ScanInputs(**{name: part.float() for name, part in given.__dict__.items()}), state.float()
    for found, expected in zip(dual_blocks(*single), dual_steps(*single), strict=True):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_state_is_the_sum_of_what_entered_each_faded_since() -> None:
    """Against the unrolled sum, which shares no code with the recurrence."""
    given, _ = dual_case(6, speed=0.3)
    outputs, _ = dual_steps(given, torch.zeros(2, GROUPS, HEADS, STATE, WIDTH).double())
    expected = torch.zeros_like(outputs)
    for now in range(6):
        for then in range(now + 1):
            faded = (given.step[:, then + 1 : now + 1].sum(1) * given.decay).exp() * given.step[:, then]
            match = (given.leaving[:, now] * given.entering[:, then]).sum(-1)
            expected[:, now] += (faded * match[..., None])[..., None] * given.value[:, then]
    torch.testing.assert_close(outputs, expected)


def test_a_selective_scan_is_a_dual_whose_heads_have_one_channel_and_decays_by_state() -> None:
    value, step, entering, leaving = (random(2, 9, size, seed=seed) for seed, size in enumerate((3, 3, 4, 4)))
    step, shared = step.abs(), -random(3, seed=7).exp()
    given = ScanInputs(value, step, entering, leaving, shared[:, None].expand(3, 4))
    scanned, state = selective_scan(given, torch.zeros(2, 3, 4))
    rows = (value[:, :, None, :, None], step[:, :, None], entering[:, :, None], leaving[:, :, None])
    expected, last = dual_steps(ScanInputs(*rows, shared[None]), torch.zeros(2, 1, 3, 4, 1).double())
    torch.testing.assert_close(scanned, expected[:, :, 0, :, 0])
    torch.testing.assert_close(state, last[:, 0, :, :, 0])


@pytest.mark.parametrize("pieces", [(12,), (1,) * 12, (5, 1, 6)])
def test_chunks_of_any_length_make_no_difference(pieces: tuple[int, ...]) -> None:
    value, weight, bias = random(2, 12, 6), random(6, 1, 4, seed=1), random(6, seed=2)
    start = torch.zeros(2, 3, 6).double()
    whole, last = convolve(value, start, weight, bias)
    state, found = start, []
    for piece in value.split(pieces, dim=1):
        convolved, state = convolve(piece, state, weight, bias)
        found.append(convolved)
    torch.testing.assert_close(torch.cat(found, 1), whole)
    torch.testing.assert_close(state, last)
    torch.testing.assert_close(whole[:, 0], value[:, 0] * weight[:, 0, -1] + bias)


def test_a_step_has_a_shortest_length() -> None:
    convolution = CausalConvolution(GROUPS * HEADS * WIDTH + 2 * GROUPS * STATE, 4, True)
    dual = StateSpaceDual(convolution, GROUPS * HEADS, WIDTH, GROUPS, STATE, shortest_step=0.25)
    rows = [
        random(1, 3, size, seed=seed)
        for seed, size in enumerate((dual.channels, dual.heads, GROUPS * STATE, GROUPS * STATE))
    ]
    rows[1][0, 0] = -20.0
    lengths = dual_inputs(dual, ScanInputs(*rows, decay=torch.ones(dual.heads))).step
    assert (lengths[0, 0] == 0.25).all()
    assert lengths.max() > 0.5
