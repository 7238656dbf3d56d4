"""weight.bin: a 64-byte header, then for each blob a 64-byte record and its data.

A record is, little-endian: u32 sentinel 0xDEADBEEF, u32 element type, u64 bytes, u64 offset of the data, u64 unused bits at the
data's end. Elements under a byte are packed without gaps, the least significant bit first. (Format: MILBlob in coremltools' sources.)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from exporter.errors import GateFailed
from exporter.targets.coreml.interpreter.types import ElementType

SENTINEL = 0xDEADBEEF
RECORD = struct.Struct("<IIQQQ")
RECORD_BYTES = 64
UNPACK_ELEMENTS = 1 << 20
"""Elements unpacked at a time, a multiple of 8: a whole table as single bits would take eight times its final size."""

STEP = "copy the package again, or convert it again"

ELEMENT_CODES = {
    1: ElementType.FP16,
    2: ElementType.FP32,
    3: ElementType.UINT8,
    4: ElementType.INT8,
    6: ElementType.INT16,
    7: ElementType.UINT16,
    8: ElementType.INT4,
    9: ElementType.UINT1,
    10: ElementType.UINT2,
    11: ElementType.UINT4,
    12: ElementType.UINT3,
    13: ElementType.UINT6,
    14: ElementType.INT32,
    15: ElementType.UINT32,
}
"""Element types as weight files number them."""


@dataclass(frozen=True)
class BlobRecord:
    """Where one blob's data lies."""

    offset: int
    code: int
    data_offset: int
    bytes: int
    unused_bits: int

    @property
    def dtype(self) -> ElementType | None:
        return ELEMENT_CODES.get(self.code)


class WeightFile:
    """Random access to the blobs of one weight file. Data are read, not mapped, so that they take memory only while they are used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
        except OSError as fault:
            raise GateFailed(f"{path}: not readable ({fault.strerror})", STEP) from None

    def record(self, offset: int) -> BlobRecord:
        """The record at `offset`. Raises GateFailed when there is none, or when its data reach past the end of the file."""
        if offset + RECORD_BYTES > self.size:
            raise GateFailed(f"{self.path}: no blob record at byte {offset}, the file ends at {self.size}", STEP)
        sentinel, code, size, data_offset, unused = RECORD.unpack(self._read(offset, RECORD.size))
        if sentinel != SENTINEL:
            raise GateFailed(f"{self.path}: no blob record at byte {offset} (it starts with {sentinel:#010x})", STEP)
        if data_offset + size > self.size:
            end = data_offset + size
            raise GateFailed(f"{self.path}: the blob at byte {offset} ends at {end}, the file at {self.size}", STEP)
        return BlobRecord(offset, code, data_offset, size, unused)

    def data(self, record: BlobRecord) -> bytearray:
        return self._read(record.data_offset, record.bytes)

    def elements(self, offset: int, dtype: ElementType, count: int) -> np.ndarray:
        """The first `count` elements of a blob, one per array element: `dtype.storage` [count].

        Raises GateFailed when the record declares another element type or holds fewer elements.
        """
        return unpack_elements(self.data(self.checked_record(offset, dtype, count)), dtype, count)

    def checked_record(self, offset: int, dtype: ElementType, count: int) -> BlobRecord:
        """The record of a blob that must hold `count` elements; see `elements`."""
        record = self.record(offset)
        if record.dtype is not dtype:
            held = record.dtype or f"type {record.code}"
            raise GateFailed(f"{self.path}: the blob at byte {offset} holds {held}, the program says {dtype}", STEP)
        if 8 * record.bytes - record.unused_bits < count * dtype.bits:
            raise GateFailed(
                f"{self.path}: the blob at byte {offset} holds {record.bytes} bytes, the program reads {count} of {dtype}",
                STEP,
            )
        return record

    def _read(self, offset: int, count: int) -> bytearray:
        data = bytearray(count)
        with self.path.open("rb") as stream:
            stream.seek(offset)
            stream.readinto(data)
        return data


def unpack_elements(data: bytes | bytearray, dtype: ElementType, count: int) -> np.ndarray:
    """The first `count` packed elements, one per array element: `dtype.storage` [count]."""
    if dtype.bits >= 8:
        return np.frombuffer(data, dtype.storage, count=min(count, 8 * len(data) // dtype.bits))
    raw, values = np.frombuffer(data, np.uint8), np.empty(count, np.uint8)
    for start in range(0, count, UNPACK_ELEMENTS):
        stop = min(start + UNPACK_ELEMENTS, count)
        part = raw[start * dtype.bits // 8 : -(-stop * dtype.bits // 8)]
        values[start:stop] = _unpack_bits(part, dtype.bits, stop - start)
    if not dtype.is_signed:
        return values
    sign = np.uint8(1 << (dtype.bits - 1))
    return (values ^ sign).view(np.int8) - np.int8(sign)


def _unpack_bits(raw: np.ndarray, bits: int, count: int) -> np.ndarray:
    if bits == 4:  # by far the commonest, and nibbles need no single bits
        return np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[:count]
    single = np.unpackbits(raw, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(single, axis=-1, bitorder="little")[:, 0]
