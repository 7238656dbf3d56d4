"""The recurrent operators against the definitions that the oracle runs, whatever the chunks, and what they do with their two copies."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from kernel_calls import address, kernel_library

from exporter.decoder.scan import ScanInputs, convolve, dual_steps, selective_scan
from tests.unit.helpers import normal

CHUNKS = (5, 1, 1, 17, 2)
TOKENS = sum(CHUNKS)
SOFTPLUS = torch.nn.functional.softplus


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return kernel_library()


@dataclass
class Kernel:
    """An operator with its state: what it makes of rows of a chunk at a position, or None where it refuses."""

    run: Callable[..., int]
    sizes: tuple[int, ...]
    rows: tuple[torch.Tensor, ...]
    """Inputs [TOKENS, n] each; the result is like the first."""
    constants: tuple[torch.Tensor | None, ...]
    numbers: int
    scalars: tuple[ctypes.c_float, ...] = ()
    state: np.ndarray = field(init=False)
    held: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.state = np.full((2, self.numbers), np.nan, np.float32)  # a runtime need not clear its memory
        self.held = np.array([3, 7], np.int64)

    def __call__(self, position: int, count: int) -> np.ndarray | None:
        chunk = [part[position : position + count].contiguous() for part in self.rows]
        sizes, out = np.array((count, *self.sizes, position), np.int64), torch.empty_like(chunk[0])
        given = (*chunk, *self.constants, self.state, self.held, out)
        return out.numpy() if self.run(address(sizes), *self.scalars, *map(address, given)) else None


def convolution(library: ctypes.CDLL, bias: bool = True) -> tuple[Kernel, torch.Tensor]:
    value, weight, offset = normal(1, TOKENS, 40), normal(2, 40, 1, 4), normal(3, 40) if bias else None
    wanted, _ = convolve(value[None], torch.zeros(1, 3, 40), weight, offset)
    constants = (weight[:, 0].T.contiguous(), offset)
    return Kernel(library.slm_causal_convolution, (40, 4), (value,), constants, 3 * 40), wanted[0]


def scanned(library: ctypes.CDLL, size: int = 16) -> tuple[Kernel, torch.Tensor]:
    value, step = normal(4, TOKENS, 37), 4 * normal(5, TOKENS, 37)
    step[0, :3] = torch.tensor([-80.0, 25.0, 90.0])
    entering, leaving, decay, skip = (
        normal(seed, *shape) for seed, shape in enumerate(((TOKENS, size),) * 2 + ((37, size), (37,)), 6)
    )
    decay = -decay.exp()
    given = ScanInputs(value[None], SOFTPLUS(step)[None], entering[None], leaving[None], decay)
    wanted, _ = selective_scan(given, torch.zeros(1, 37, size))
    rows, constants = (value, step, entering, leaving), (decay, skip)
    return Kernel(library.slm_selective_scan, (37, size), rows, constants, 37 * size), wanted[0] + skip * value


def dual(library: ctypes.CDLL, shortest: float = 0.0, width: int = 20) -> tuple[Kernel, torch.Tensor]:
    groups, heads, size = 2, 3, 12
    value, step = normal(10, TOKENS, groups * heads * width), normal(11, TOKENS, groups * heads)
    entering, leaving = (normal(seed, TOKENS, groups * size) for seed in (12, 13))
    bias, decay, skip = (normal(seed, groups * heads) for seed in (14, 15, 16))
    decay = -decay.exp()
    parts = value.view(1, TOKENS, groups, heads, width)
    lengths = SOFTPLUS(step + bias).clamp_min(shortest).view(1, TOKENS, groups, heads)
    shared = [part.view(1, TOKENS, groups, size) for part in (entering, leaving)]
    given = ScanInputs(parts, lengths, *shared, decay=decay.view(groups, heads))
    state = torch.zeros(1, groups, heads, size, width)
    wanted, _ = dual_steps(given, state)
    wanted = wanted + skip.view(groups, heads, 1) * parts
    rows, constants = (value, step, entering, leaving), (bias, decay, skip)
    sizes, numbers = (groups, heads, size, width), groups * heads * size * width
    kernel = Kernel(library.slm_state_space_dual, sizes, rows, constants, numbers, (ctypes.c_float(shortest),))
    return kernel, wanted.reshape(TOKENS, -1)


KERNELS = {
    "convolution": convolution,
    "convolution without bias": lambda library: convolution(library, bias=False),
    "scan": scanned,
    "scan of odd states": lambda library: scanned(library, 5),
    "dual": dual,
    "dual with long steps": lambda library: dual(library, 1.5, 7),
}


@pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS)
def test_every_cut_into_chunks_gives_what_the_definition_gives(
    library: ctypes.CDLL, make: Callable[..., tuple[Kernel, torch.Tensor]]
) -> None:
    for chunks in (CHUNKS, (1,) * TOKENS, (TOKENS,)):
        kernel, wanted = make(library)
        starts = np.cumsum((0, *chunks[:-1]))
        found = np.concatenate([kernel(int(start), count) for start, count in zip(starts, chunks, strict=True)])
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("make", KERNELS.values(), ids=KERNELS)
def test_a_chunk_can_be_given_again_from_where_it_began(
    library: ctypes.CDLL, make: Callable[..., tuple[Kernel, torch.Tensor]]
) -> None:
    kernel, _ = make(library)
    plain = np.concatenate([kernel(0, 6), kernel(6, 5), kernel(11, 2)])
    again = [kernel(0, 6)]
    for count in range(1, 6):
        last = kernel(6, count)
    np.testing.assert_array_equal(np.concatenate([*again, last, kernel(11, 2)]), plain)


def test_a_position_that_no_copy_stands_before_is_refused(library: ctypes.CDLL) -> None:
    kernel, _ = scanned(library)
    assert kernel(4, 1) is None
    assert kernel(0, 6) is not None
    assert kernel(3, 1) is None, "overwritten"
    assert kernel(7, 1) is None, "left by another conversation"
    assert kernel(6, 2) is not None
    assert kernel(8, 2) is not None
    assert kernel(6, 1) is None, "two calls ago"
    assert kernel(10, 1) is not None
