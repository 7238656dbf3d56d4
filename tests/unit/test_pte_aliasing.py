"""A tied table is stored once in a .pte: what is relied on of ExecuTorch's file format, and that the rewritten file computes the same."""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from executorch.exir._serialize import _program as serialization

from exporter.decoder.cache import CacheSettings
from exporter.errors import GateFailed
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat, WeightFormat
from exporter.quantize.quantized_checkpoint import save_quantized
from exporter.recipe import ExecutorchSection
from exporter.targets.executorch.chunks import ChunkedDriver
from exporter.targets.executorch.host import HostLayout
from exporter.targets.executorch.xnnpack import lower
from exporter.targets.executorch.xnnpack.aliasing import Aliasing, alias_equal_segments
from exporter.targets.executorch.xnnpack.driver import LoadedProgram
from exporter.targets.executorch.xnnpack.names import PROGRAM_FILE
from exporter.targets.executorch.xnnpack.program import write_program
from exporter.targets.executorch.xnnpack.trace import traced_methods
from tests.unit.helpers import TinyModel, quantized_decoder

MODEL = TinyModel(
    windows=(None,), hidden_size=64, inner_size=64, query_heads=2, head_dim=32, rotated=32, vocab_size=300
)
SETTINGS = CacheSettings(32, 8), KvFormat(32, KvScaling.NONE), WeightFormat(4, 32, ScaleFormat.BF16)
DECODER = quantized_decoder(MODEL, *SETTINGS)
PLAIN = ExecutorchSection(operators="plain")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("untied") / PROGRAM_FILE
    write_program(traced_methods(DECODER, PLAIN), path)
    return path


def logits(path: Path) -> np.ndarray:
    driver = ChunkedDriver(LoadedProgram(path), HostLayout(32, 8, 300, 0, False), 0, "test")
    return np.concatenate([driver.prefill([5, 7, 11]), driver.decode(299)[None]])


def test_the_format_is_that_of_the_pinned_version() -> None:
    assert importlib.metadata.version("executorch") == "1.5.1"


def test_a_tied_table_is_stored_once_and_nothing_else_changes(written: Path, tmp_path: Path) -> None:
    path = tmp_path / PROGRAM_FILE
    path.write_bytes(written.read_bytes())
    stored = alias_equal_segments(path)
    table = DECODER.weights.quantized("embedding").packed.nbytes
    assert stored.segments == 1
    assert stored.bytes_with_copies == written.stat().st_size
    assert table - 512 < stored.bytes_with_copies - stored.bytes <= table + 512
    np.testing.assert_array_equal(logits(path), logits(written))
    assert alias_equal_segments(path) == Aliasing(stored.bytes, stored.bytes, 1)


def test_both_users_read_the_same_bytes_of_the_file(written: Path, tmp_path: Path) -> None:
    path = tmp_path / PROGRAM_FILE
    path.write_bytes(written.read_bytes())
    alias_equal_segments(path)
    packed = bytes(DECODER.weights.quantized("embedding").packed.flatten().numpy() ^ 0x88)
    assert written.read_bytes().count(packed) == 2
    raw = bytearray(path.read_bytes())
    assert raw.count(packed) == 1
    at = raw.index(packed)
    header = serialization._get_extended_header(bytes(raw))
    assert (at - header.segment_base_offset) % 16 == 0
    before = logits(path)
    raw[at : at + len(packed)] = bytes(len(packed))
    path.write_bytes(raw)
    assert not np.array_equal(logits(path), before)


@pytest.mark.slow
def test_an_untied_decoder_keeps_its_file(tmp_path: Path) -> None:
    decoder = quantized_decoder(replace(MODEL, tied=False), *SETTINGS)
    path = tmp_path / PROGRAM_FILE
    write_program(traced_methods(decoder, PLAIN), path)
    before = path.read_bytes()
    assert alias_equal_segments(path).segments == 0
    assert path.read_bytes() == before


def test_lowering_fails_where_the_rewritten_file_says_something_else(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program is the one that was written for this file's other tests: lowering it again would take most of the time."""
    save_quantized(DECODER, tmp_path)

    def spoil(path: Path) -> Aliasing:
        stored = alias_equal_segments(path)
        raw, packed = bytearray(path.read_bytes()), DECODER.weights.quantized("embedding").packed.flatten() ^ 0x88
        at = raw.index(bytes(packed.numpy()))
        raw[at : at + 64] = bytes(torch.zeros(64, dtype=torch.uint8).numpy())
        path.write_bytes(raw)
        return stored

    monkeypatch.setattr(lower, "traced_methods", lambda decoder, settings: {})
    monkeypatch.setattr(lower, "write_program", lambda methods, path: shutil.copyfile(written, path))
    monkeypatch.setattr(lower, "alias_equal_segments", spoil)
    arguments = {"quantized": str(tmp_path), "artifact": str(tmp_path), "settings": {"operators": "plain"}}
    with pytest.raises(GateFailed, match="computes something else"):
        lower.lower_in_child(arguments, lambda event: None)
