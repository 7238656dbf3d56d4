"""Stores a tied table once: XNNPACK's copy of a head becomes a reference to the same bytes among the constants.

A program's file is a header, a description and segments. A segment is only an offset and a size, and nothing says that two may not
overlap: a segment of named data (XNNPACK's weights) whose bytes occur in the segment of constants is pointed there, and its copy is
left out. The functions that read and write the description are private to ExecuTorch 1.5.1; `tests/unit/test_pte_aliasing.py` pins what
is relied on, and every file written here is run before it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from executorch.exir._serialize import _program as serialization
from executorch.exir._serialize.padding import aligned_size, pad_to
from executorch.exir.schema import DataSegment, Program

SMALLEST_BYTES = 4096
"""A smaller segment is not worth a reference."""

SEGMENT_ALIGNMENT = 128
CONSTANT_ALIGNMENT = 16
"""XNNPACK reads weights at multiples of this, and constants lie at such multiples."""


@dataclass(frozen=True)
class Aliasing:
    """Sizes of the file with the second copy and without it, bytes, and how many segments were pointed elsewhere."""

    bytes_with_copies: int
    bytes: int
    segments: int


def alias_equal_segments(path: Path) -> Aliasing:
    """Rewrites a .pte in place. A file without equal segments stays as it is."""
    raw = path.read_bytes()
    header = serialization._get_extended_header(raw)
    program = serialization._flatbuffer_to_program(raw[: header.program_size])
    blobs = [raw[header.segment_base_offset + each.offset :][: each.size] for each in program.segments]
    aliases = _equal_ranges(program, blobs)
    if aliases:
        path.write_bytes(_rewritten(program, blobs, aliases))
    return Aliasing(len(raw), path.stat().st_size, len(aliases))


def _equal_ranges(program: Program, blobs: list[bytes]) -> dict[int, int]:
    """Segment of named data -> offset of equal bytes in the segment of constants."""
    constants, found = blobs[program.constant_segment.segment_index], {}
    for entry in program.named_data or []:
        blob = blobs[entry.segment_index]
        if len(blob) < SMALLEST_BYTES:
            continue
        for offset in program.constant_segment.offsets[1:]:  # the first one stands for "no constant"
            if offset % CONSTANT_ALIGNMENT == 0 and constants[offset : offset + len(blob)] == blob:
                found[entry.segment_index] = offset
                break
    return found


def _rewritten(program: Program, blobs: list[bytes], aliases: dict[int, int]) -> bytes:
    """The file with the segments in `aliases` left out and pointed into the constants."""
    body, places = bytearray(), {}
    for index, blob in enumerate(blobs):
        if index not in aliases:
            body.extend(bytes(aligned_size(len(body), SEGMENT_ALIGNMENT) - len(body)))
            places[index] = DataSegment(offset=len(body), size=len(blob))
            body.extend(blob)
    base = places[program.constant_segment.segment_index].offset
    for index, offset in aliases.items():
        places[index] = DataSegment(offset=base + offset, size=len(blobs[index]))
    program.segments = [places[index] for index in range(len(blobs))]
    return _framed(program, bytes(body))


def _framed(program: Program, body: bytes) -> bytes:
    """Description with its extended header inside, padded, then the segments."""
    described = serialization._program_to_flatbuffer(program, constant_tensor_alignment=None, delegate_alignment=None)
    header_size = aligned_size(serialization._ExtendedHeader.EXPECTED_LENGTH, described.max_alignment)
    program_size = header_size + len(described.data)
    start = aligned_size(program_size, SEGMENT_ALIGNMENT)
    header = serialization._ExtendedHeader(
        program_size=program_size, segment_base_offset=start, segment_data_size=len(body)
    )
    framed = serialization._insert_flatbuffer_header(
        flatbuffer_data=described.data,
        magic_regex=r"ET[0-9a-zA-Z][0-9a-zA-Z]",
        header_data=pad_to(header.to_bytes(), header_size),
    )
    return bytes(framed) + bytes(start - len(framed)) + body
