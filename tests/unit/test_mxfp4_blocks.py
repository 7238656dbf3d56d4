"""MXFP4 against its definition, and the faults of checkpoints that hold it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from checkpoint_errors import raised_by
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file

from exporter.checkpoint.mxfp4 import BLOCK_BYTES, scales_name, unpack, unpacked_shape
from exporter.checkpoint.tensors import SINGLE_FILE, TensorFolder

ONE = 127
"""The scale that leaves elements as they are."""
ELEMENTS = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
NAME = "experts.down_proj_blocks"
SCALES = "experts.down_proj_scales"


def element(code: int) -> float:
    """E2M1 by its bits: exponents are biased by one, and the least of them stands for subnormal numbers."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    return (-1) ** sign * 2.0 ** (max(exponent, 1) - 1) * ((exponent > 0) + mantissa / 2)


def uint8(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


def test_all_sixteen_codes_low_nibble_first() -> None:
    blocks = uint8([[2 * pair | (2 * pair + 1) << 4 for pair in range(8)] * 2])
    assert unpack(blocks, uint8([ONE])).tolist() == ELEMENTS * 2
    assert [element(code) for code in range(16)] == ELEMENTS


def test_a_scale_is_a_power_of_two_and_the_last_one_is_not_a_number() -> None:
    blocks = torch.full((256, 1, BLOCK_BYTES), 0x22, dtype=torch.uint8)
    values = unpack(blocks, torch.arange(256, dtype=torch.uint8).view(256, 1))
    assert values.shape == (256, 32)
    assert values[:255, 0].tolist() == [math.ldexp(1.0, scale - 127) for scale in range(255)]
    assert values[255].isnan().all()


@given(st.data())
@examples(30)
def test_every_number_is_its_element_times_the_power_of_its_block(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
    blocks = torch.from_numpy(data.draw(arrays("uint8", (*shape, BLOCK_BYTES))))
    scales = torch.from_numpy(data.draw(arrays("uint8", shape, elements=st.integers(0, 250))))
    values = unpack(blocks, scales)
    assert values.shape == unpacked_shape(tuple(blocks.shape), shape) == (*shape[:2], 32 * shape[2])
    for expert, row, column in ((0, 0, 0), (-1, -1, -1), (0, -1, 32 * (shape[2] - 1) + 5)):
        byte = int(blocks[expert, row].flatten()[column // 2])
        scale = int(scales[expert, row, column // 32])
        assert values[expert, row, column] == element(byte >> 4 * (column % 2) & 15) * math.ldexp(1.0, scale - 127)


@pytest.mark.parametrize(
    ("blocks", "scales"), [((2, 3, 8), (2, 3)), ((2, 3, 16), (2, 2)), ((16,), ()), ((2, 16), (2, 1)), ((), ())]
)
def test_shapes_that_do_not_go_together(blocks: tuple[int, ...], scales: tuple[int, ...]) -> None:
    assert unpacked_shape(blocks, scales) is None


def test_only_tensors_of_blocks_have_scales() -> None:
    assert scales_name(NAME) == SCALES
    assert scales_name("model.embed_tokens.weight") is None


def folder_with(folder: Path, **changes: torch.Tensor | None) -> TensorFolder:
    """Blocks [2, 4, 3, 16] beside their scales; a change to None leaves a tensor out."""
    random = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (2, 4, 3, BLOCK_BYTES), dtype=torch.uint8, generator=random)
    tensors = {"blocks": blocks, "scales": torch.randint(120, 130, (2, 4, 3), generator=random).byte()} | changes
    names = {"blocks": NAME, "scales": SCALES}
    save_file({names[key]: tensor for key, tensor in tensors.items() if tensor is not None}, folder / SINGLE_FILE)
    return TensorFolder(folder)


def test_a_pair_of_tensors_is_read_as_one_of_floats_expert_by_expert(tmp_path: Path) -> None:
    tensors = folder_with(tmp_path)
    whole = tensors.read(NAME)
    assert tensors.shape(NAME) == tuple(whole.shape) == (2, 4, 96)
    assert torch.equal(tensors.read(NAME, slice(1, 2)), whole[1:])
    assert len(whole.unique()) > 30


@pytest.mark.parametrize("broken", [{"scales": None}, {"blocks": torch.zeros(2, 4, 3, 15)}])
def test_tensors_that_are_no_pair_are_named_by_the_headers(
    tmp_path: Path, broken: dict[str, torch.Tensor | None]
) -> None:
    tensors = folder_with(tmp_path, **broken)
    message = str(raised_by(lambda: tensors.shape(NAME)))
    assert NAME in message
    assert SCALES in message


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        ({"blocks": torch.zeros(2, 4, 3, BLOCK_BYTES)}, NAME),
        ({"scales": torch.zeros(2, 4, 3, dtype=torch.int8)}, SCALES),
    ],
)
def test_another_type_of_either_tensor_is_named(tmp_path: Path, broken: dict[str, torch.Tensor], name: str) -> None:
    tensors = folder_with(tmp_path, **broken)
    message = str(raised_by(lambda: tensors.read(NAME)))
    assert f"{name} is {next(iter(broken.values())).dtype}" in message


@pytest.mark.parametrize("scale", [254, 255])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, scale: int) -> None:
    """2^127 times 6 exceeds float32, 255 is not a number."""
    tensors = folder_with(tmp_path, scales=torch.full((2, 4, 3), scale, dtype=torch.uint8))
    assert f"{NAME} holds NaN or infinite values" in str(raised_by(lambda: tensors.read(NAME)))
