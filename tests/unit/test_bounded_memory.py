"""What keeps memory bounded gives the numbers of what it replaces: blocks of rows, float copies within a limit, rows in files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import examples, normal
from hypothesis import given
from hypothesis import strategies as st

from exporter.decoder.weights import DecoderWeights, blockwise_product, row_blocks
from exporter.folder import link_or_copy
from exporter.quantize.formats import RoundingMethod, ScaleFormat, WeightFormat
from exporter.quantize.int4 import join_rows, quantize_nearest
from exporter.runtime.rows import RowFile, map_rows
from exporter.verify.parity import compare_logits

INT4 = WeightFormat(4, 32, ScaleFormat.LPBQ)


@examples(100)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 500))
def test_blocks_cover_every_row_once(rows: int, columns: int, elements: int) -> None:
    covered = [row for block in row_blocks(rows, columns, elements) for row in range(block.start, block.stop)]
    assert covered == list(range(rows))
    assert all(block.stop - block.start <= max(1, elements // columns) for block in row_blocks(rows, columns, elements))


def test_a_product_by_blocks_is_the_product() -> None:
    value, matrix = normal(1, 5, 3000), normal(2, 1000, 3000)
    assert len(list(row_blocks(1000, 3000))) > 2
    product = blockwise_product(value, (1000, 3000), lambda rows: matrix[rows])
    torch.testing.assert_close(product, value @ matrix.T, rtol=1e-4, atol=1e-3)


def test_copies_are_kept_only_within_their_limit() -> None:
    first, second = (quantize_nearest(normal(seed, 16, 64), INT4) for seed in (1, 2))
    store = DecoderWeights({"first": first, "second": second}, {}, kept_bytes=4 * 16 * 64)
    value = normal(3, 2, 64)
    for name, matrix in (("first", first), ("second", second)):
        torch.testing.assert_close(store.product(value, name), value @ matrix.dequantize().T)
    assert store.dense("first") is store.dense("first")
    assert store.dense("second") is not store.dense("second")
    store.release()
    assert store.dense("second") is store.dense("second")


@pytest.mark.parametrize("method", [RoundingMethod.RTN, RoundingMethod.SEARCH])
@pytest.mark.parametrize(
    "weight_format", [INT4, WeightFormat(4, 32, ScaleFormat.FP16), WeightFormat(8, 72, ScaleFormat.FP16)]
)
def test_rows_quantized_in_blocks_are_the_rows_of_the_whole(
    method: RoundingMethod, weight_format: WeightFormat
) -> None:
    weight, search = normal(4, 23, 72), method is RoundingMethod.SEARCH
    whole = quantize_nearest(weight, weight_format, search)
    joined = join_rows([quantize_nearest(part, weight_format, search) for part in weight.split(5)])
    assert torch.equal(joined.packed, whole.packed)
    assert torch.equal(joined.scales, whole.scales)
    assert torch.equal(joined.dequantize(), whole.dequantize())


def test_rows_written_piece_by_piece_are_read_as_one(tmp_path: Path) -> None:
    rows = normal(5, 9, 1000)
    with RowFile(tmp_path / "rows.npy") as file:
        for piece in rows.split(4):
            file.append(piece.numpy())
    assert torch.equal(map_rows(tmp_path / "rows.npy"), rows)
    assert np.array_equal(np.load(tmp_path / "rows.npy"), rows.numpy())


def test_logits_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, artifact = normal(6, 12, 50), normal(7, 12, 50)
    whole = compare_logits(oracle, artifact)
    monkeypatch.setattr("exporter.verify.parity.row_blocks", lambda rows, columns: row_blocks(rows, columns, 150))
    parts = compare_logits(oracle, artifact)
    assert parts.mean_kl == pytest.approx(whole.mean_kl)
    assert (parts.tokens, parts.disagreements, parts.near_ties, parts.max_abs_error) == (
        whole.tokens,
        whole.disagreements,
        whole.near_ties,
        whole.max_abs_error,
    )


def test_a_logit_that_is_no_number_is_never_lost() -> None:
    artifact = normal(8, 6, 20)
    artifact[2, 3] = math.nan
    figures = compare_logits(normal(9, 6, 20), artifact)
    assert math.isnan(figures.max_abs_error)
    assert math.isnan(figures.mean_kl)


def test_a_linked_file_is_the_same_bytes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(b"weights")
    link_or_copy(tmp_path / "source", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(tmp_path / "source")

    def refuse(*paths: object) -> None:
        raise OSError("no links on this volume")

    monkeypatch.setattr("os.link", refuse)
    link_or_copy(tmp_path / "source", tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == b"weights"
    assert not (tmp_path / "copied").samefile(tmp_path / "source")
