"""Weight files: what is packed comes out again, and what is broken is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import GateFailed
from exporter.targets.coreml.interpreter.storage import RECORD, SENTINEL, UNPACK_ELEMENTS, WeightFile, unpack_elements
from exporter.targets.coreml.interpreter.types import ElementType, TensorType

NARROW = [item for item in ElementType if 0 < item.bits < 8]


def pack(values: np.ndarray, bits: int) -> bytes:
    """One number: element i at bit i times `bits`. The slow way, so that it shares nothing with what it tests."""
    number = sum((int(value) % (1 << bits)) << (place * bits) for place, value in enumerate(values))
    return number.to_bytes(-(-len(values) * bits // 8), "little")


@given(st.data(), st.sampled_from(NARROW))
def test_elements_under_a_byte_come_out_as_they_were_packed(data: st.DataObject, dtype: ElementType) -> None:
    low = -(1 << (dtype.bits - 1)) if dtype.is_signed else 0
    values = np.array(data.draw(st.lists(st.integers(low, low + (1 << dtype.bits) - 1), min_size=1, max_size=40)))
    np.testing.assert_array_equal(unpack_elements(pack(values, dtype.bits), dtype, len(values)), values)


@pytest.mark.parametrize("dtype", [ElementType.UINT3, ElementType.INT4, ElementType.UINT6])
def test_elements_are_unpacked_across_the_seams_of_long_blobs(dtype: ElementType) -> None:
    count = UNPACK_ELEMENTS + 9
    packed = np.random.default_rng(0).integers(0, 256, -(-count * dtype.bits // 8), np.uint8).tobytes()
    seam = UNPACK_ELEMENTS - 8
    tail = packed[seam * dtype.bits // 8 :]
    whole = unpack_elements(packed, dtype, count)
    np.testing.assert_array_equal(whole[seam:], unpack_elements(tail, dtype, count - seam))


def test_bytes_of_a_type_are_those_of_its_packed_elements() -> None:
    assert TensorType((3, 3), ElementType.INT4).bytes == 5
    assert TensorType((None, 4), ElementType.FP16).bytes == 8
    assert [item.bits for item in (ElementType.UINT1, ElementType.BOOL, ElementType.FP16)] == [1, 8, 16]


def weight_file(folder: Path, sentinel: int = SENTINEL, code: int = 1, size: int = 8, shift: int = 128) -> WeightFile:
    """A header, one record at byte 64 and four fp16 numbers at byte 128."""
    record = RECORD.pack(sentinel, code, size, shift, 0)
    data = np.array([1, 2, 3, 4], np.float16).tobytes()
    path = folder / "weight.bin"
    path.write_bytes(bytes(64) + record.ljust(64, b"\0") + data)
    return WeightFile(path)


def test_a_blob_is_read_by_the_offset_of_its_record(tmp_path: Path) -> None:
    np.testing.assert_array_equal(weight_file(tmp_path).elements(64, ElementType.FP16, 4), [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("file", "offset", "dtype", "count", "problem"),
    [
        ({"sentinel": 1}, 64, ElementType.FP16, 4, "no blob record at byte 64 (it starts with 0x00000001)"),
        ({}, 128, ElementType.FP16, 4, "no blob record at byte 128, the file ends at 136"),
        ({"size": 9}, 64, ElementType.FP16, 4, "the blob at byte 64 ends at 137, the file at 136"),
        ({}, 64, ElementType.INT8, 4, "the blob at byte 64 holds fp16, the program says int8"),
        ({"code": 77}, 64, ElementType.FP16, 4, "the blob at byte 64 holds type 77, the program says fp16"),
        ({}, 64, ElementType.FP16, 5, "the blob at byte 64 holds 8 bytes, the program reads 5 of fp16"),
    ],
    ids=["sentinel", "past the end", "truncated", "type", "unknown type", "short"],
)
def test_a_broken_record_is_named(
    tmp_path: Path, file: dict[str, int], offset: int, dtype: ElementType, count: int, problem: str
) -> None:
    with pytest.raises(GateFailed) as fault:
        weight_file(tmp_path, **file).elements(offset, dtype, count)
    assert fault.value.message == f"{tmp_path / 'weight.bin'}: {problem}"
    assert fault.value.next_step
