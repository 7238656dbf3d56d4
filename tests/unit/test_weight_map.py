"""Weights found in a checkpoint's tensors: fused, interleaved, transposed, scaled, under other names."""

from __future__ import annotations

import torch

from exporter.checkpoint.alibi import distance_slopes
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, Rows, Source, WeightMap, fused, scaled_ends


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def extract(source: Source, tensor: torch.Tensor) -> torch.Tensor:
    return source.scaled(source.unpack(tensor))


def test_parts_of_a_fused_tensor_lie_one_above_the_other() -> None:
    tensor, parts = numbered(9, 2), fused(4, 3, 2)
    assert parts == (Rows(0, 4, 9), Rows(4, 3, 9), Rows(7, 2, 9))
    taken = [extract(Source("t", rows), tensor) for rows in parts]
    assert torch.equal(torch.cat(taken), tensor)
    assert [Source("t", rows).stored_shape((rows.count, 2)) for rows in parts] == [(9, 2)] * 3


def test_parts_that_repeat_are_gathered_from_every_run() -> None:
    """Two key heads, each with two query heads of one row."""
    tensor, (queries, keys, values) = numbered(8, 1), fused(2, 1, 1)
    assert extract(Source("t", queries), tensor).flatten().tolist() == [0, 1, 4, 5]
    assert extract(Source("t", keys), tensor).flatten().tolist() == [2, 6]
    assert extract(Source("t", values), tensor).flatten().tolist() == [3, 7]
    assert Source("t", queries).stored_shape((4, 1)) == Source("t", keys).stored_shape((2, 1)) == (8, 1)


def test_a_transposed_tensor_is_turned_before_it_is_cut() -> None:
    tensor = numbered(2, 6)
    source = Source("t", fused(2, 2, 2)[1], transposed=True)
    assert torch.equal(extract(source, tensor), tensor.T[2:4])
    assert extract(source, tensor).is_contiguous()
    assert source.stored_shape((2, 2)) == (2, 6)


def test_constants_are_multiplied_and_added() -> None:
    assert extract(Source("t", factor=2.0, offset=1.0), torch.tensor([3.0])).tolist() == [7.0]


def test_a_bias_lies_beside_its_matrix_in_the_same_rows_and_is_never_transposed() -> None:
    weights = LLAMA_WEIGHTS.joined("model.layers.{}.qkv.weight", ["layers.attention.query"], [4])
    weights = weights.changed(["layers.attention.query"], transposed=True, factor=3.0)
    assert weights.source("layers.7.attention.query.bias") == Source(
        "model.layers.7.qkv.bias", Rows(0, 4, 4), transposed=False, factor=3.0
    )


def test_a_bias_of_a_norm_lacks_the_offset_of_its_gain() -> None:
    weights = LLAMA_WEIGHTS.changed(["final_norm"], offset=1.0)
    assert weights.source("final_norm").offset == 1.0
    assert weights.source("final_norm.bias") == Source("model.norm.bias")


def test_other_names_of_a_tensor_come_after_the_usual_one() -> None:
    weights = WeightMap.of({"head": "model.head.weight"})
    weights = WeightMap(weights.sources, former={"model.head.weight": "out.weight"})
    names = [source.tensor for source in weights.candidates("head")]
    assert names == ["model.head.weight", "head.weight", "out.weight"]


def test_a_head_that_shares_a_scaled_table_is_evened_out_by_the_norm_before_it() -> None:
    normed, table, gain = torch.randn(3, 4), torch.randn(5, 4), torch.randn(4)
    weights = LLAMA_WEIGHTS.changed(["final_norm"], offset=1.0)
    for tied in (True, False):
        scaled = scaled_ends(weights, tied, embedding=6.0, logits=0.5)
        embedding = extract(scaled.source("embedding"), table)
        torch.testing.assert_close(embedding, 6.0 * table)
        head = embedding if tied else extract(scaled.source("head"), table)
        logits = (normed * extract(scaled.source("final_norm"), gain)) @ head.T
        torch.testing.assert_close(logits, 0.5 * (normed * (1 + gain)) @ table.T)


def test_slopes_fall_geometrically_and_split_the_next_power_of_two() -> None:
    assert distance_slopes(8) == tuple(2.0**-index for index in range(1, 9))
    assert distance_slopes(4) == (0.25, 0.0625, 2.0**-6, 2.0**-8)
    assert distance_slopes(6) == (0.25, 0.0625, 2.0**-6, 2.0**-8, 0.5, 0.125)


def test_rows_of_a_weight_are_rows_of_its_tensor_where_they_lie_together() -> None:
    first, second = fused(4, 3)
    assert Source("t").stored_rows(slice(2, 5), 9) == slice(2, 5)
    assert Source("t", second).stored_rows(slice(1, 3), 7) == slice(5, 7)
    assert Source("t", second).stored_rows(slice(None), 7) == slice(4, 7)
    assert torch.equal(Source("t", second).stored_rows(torch.tensor([0, 2]), 7), torch.tensor([4, 6]))
    assert Source("t", first).stored_rows(slice(0, 2), 14) is None
    assert Source("t", transposed=True).stored_rows(slice(0, 2), 7) is None
