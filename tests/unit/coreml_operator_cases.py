"""Calls of every operator of the interpreter, with what they give where coremltools does not fold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def between(low: float, high: float, *shape: int) -> np.ndarray:
    return RANDOM.uniform(low, high, shape).astype(np.float32)


def whole(low: int, high: int, *shape: int) -> np.ndarray:
    return RANDOM.integers(low, high, shape).astype(np.int32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


Arrays = Mapping[str, Any]
Expected = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One call: `tensors` are inputs of the program, `settings` constants. Without `expected`, coremltools folds the same call."""

    operator: str
    tensors: Arrays
    settings: Arrays = field(default_factory=dict)
    expected: Expected | None = None


def with_torch(function: Callable[..., Any]) -> Expected:
    """A torch function of the tensors, in their order."""
    return lambda *arrays: function(*(torch.from_numpy(array) for array in arrays)).numpy()


X, Y = normal(2, 3, 4), normal(2, 3, 4)
X4 = normal(2, 4, 5, 6)
COLUMN = normal(3, 1)
COUNTS, FEW = whole(-9, 9, 2, 3), whole(1, 5, 2, 3)
TRUTH, OTHER = COUNTS > 0, FEW > 2


def _rows() -> dict[str, np.ndarray]:
    """What a scatter along axis 1 of X takes, each place once."""
    return {"data": X, "indices": whole(0, 3, 2, 1, 4), "updates": normal(2, 1, 4)}


def _put(data: np.ndarray, indices: np.ndarray, updates: np.ndarray, combine: Expected) -> np.ndarray:
    data = data.copy()
    np.put_along_axis(data, indices, combine(np.take_along_axis(data, indices, 1), updates), 1)
    return data


def _scattered(data: np.ndarray, updates: np.ndarray, combine: Expected) -> np.ndarray:
    data = data.copy()
    data[1, 2], data[0, 0] = combine(data[1, 2], updates[0]), combine(data[0, 0], updates[1])
    return data


PLAIN_UNARY = (
    "abs atan ceil cos erf exp exp2 floor round sign sin sinh cosh square tan tanh relu relu6 sigmoid softplus softsign"
)

CASES = [
    *(Case(name, {"x": X, "y": COLUMN}) for name in ("add", "sub", "mul", "real_div", "maximum", "minimum")),
    *(Case(name, {"x": COUNTS, "y": FEW}) for name in ("add", "sub", "mul", "floor_div", "mod", "maximum", "minimum")),
    *(Case(name, {"x": X, "y": COLUMN}) for name in ("floor_div", "mod", "greater", "less")),
    *(
        Case(name, {"x": COUNTS, "y": ints(0, 1, -1)})
        for name in ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal")
    ),
    *(Case(name, {"x": TRUTH, "y": OTHER}) for name in ("logical_and", "logical_or", "logical_xor")),
    Case("logical_not", {"x": TRUTH}),
    Case("pow", {"x": between(0.1, 2, 3), "y": normal(3)}),
    *(Case(name, {"x": 3 * X}) for name in PLAIN_UNARY.split()),
    Case("round", {"x": np.array([0.5, 1.5, -0.5, 2.5], np.float32)}),
    *(Case(name, {"x": between(-0.9, 0.9, 5)}) for name in ("acos", "asin", "atanh")),
    Case("sqrt", {"x": between(0.1, 2, 5)}),
    Case("rsqrt", {"x": between(0.1, 2, 5)}, {"epsilon": 0.5}),
    Case("inverse", {"x": between(0.1, 2, 5)}, {"epsilon": 0.5}),
    Case("log", {"x": between(0.1, 2, 5)}, {"epsilon": 0.5}),
    Case("clip", {"x": X}, {"alpha": -0.5, "beta": 0.25}),
    Case("threshold", {"x": X}, {"alpha": 0.25}),
    Case("cast", {"x": 5 * X}, {"dtype": "int32"}),
    Case("cast", {"x": COUNTS}, {"dtype": "bool"}),
    Case("cast", {"x": TRUTH}, {"dtype": "fp32"}),
    Case("select", {"cond": TRUTH, "a": COUNTS, "b": FEW}),
    Case("silu", {"x": X}, expected=with_torch(functional.silu)),
    *(Case("gelu", {"x": X}, {"mode": mode}) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")),
    Case("softmax", {"x": X}, {"axis": 1}),
    Case("leaky_relu", {"x": X}, {"alpha": 0.1}),
    Case("elu", {"x": X}, {"alpha": 0.7}),
    Case("prelu", {"x": X4}, {"alpha": np.array([0.1, 0.2, 0.3, 0.4], np.float32)}),
    Case("thresholded_relu", {"x": X}, {"alpha": 0.4}),
    Case("clamped_relu", {"x": X}, {"alpha": 0.2, "beta": 0.9}),
    Case("linear_activation", {"x": X}, {"alpha": 0.2, "beta": 0.9}),
    Case("scaled_tanh", {"x": X}, {"alpha": 0.2, "beta": 0.9}),
    Case("sigmoid_hard", {"x": X}, {"alpha": 0.7, "beta": 0.4}),
    Case("softplus_parametric", {"x": X}, {"alpha": between(0.1, 1, 3), "beta": between(0.1, 1, 3)}),
    Case("linear", {"x": X}, {"weight": normal(5, 4), "bias": normal(5)}),
    Case("linear", {"x": X}, {"weight": normal(5, 4)}),
    Case("matmul", {"x": X, "y": normal(2, 4, 5)}),
    Case("matmul", {"x": X, "y": normal(3, 5)}, {"transpose_x": True}),
    Case("matmul", {"x": X, "y": normal(2, 5, 4)}, {"transpose_y": True}),
    Case("einsum", {"values": [X4, normal(2, 6, 5, 3)]}, {"equation": "nchw,nwhu->nchu"}),
    Case("layer_norm", {"x": X}, {"axes": [-1], "gamma": normal(4), "beta": normal(4), "epsilon": 1e-3}),
    Case("layer_norm", {"x": X}, {"axes": [1, 2], "gamma": normal(3, 4), "beta": normal(3, 4), "epsilon": 1e-3}),
    Case("l2_norm", {"x": X4}, {"epsilon": 1e-3}),
    Case(
        "instance_norm",
        {"x": X4},
        {"gamma": np.full(4, 2, np.float32), "beta": np.full(4, 3, np.float32), "epsilon": 1e-3},
        with_torch(lambda x: 2 * functional.instance_norm(x, eps=1e-3) + 3),
    ),
    Case(
        "batch_norm",
        {"x": X4},
        {"mean": np.full(4, 0.5, np.float32), "variance": np.full(4, 4, np.float32), "epsilon": 0.0},
        lambda x: (x - 0.5) / 2,
    ),
    *(
        Case(f"reduce_{name}", {"x": between(0.1, 2, 2, 3, 4)}, {"axes": axes, "keep_dims": keep})
        for name in ["l1_norm", "l2_norm", "log_sum", "log_sum_exp", "max", "mean", "min", "prod", "sum", "sum_square"]
        for axes, keep in (([1], True), ([0, -1], False))
    ),
    Case("reduce_sum", {"x": COUNTS}, {"axes": [0], "keep_dims": False}),
    *(Case(f"reduce_arg{name}", {"x": X}, {"axis": 1, "keep_dims": False}) for name in ("max", "min")),
    Case("identity", {"x": X}),
    Case("reshape", {"x": X}, {"shape": [4, -1]}),
    Case("reshape", {"x": X}, {"shape": [-1, 0]}, lambda x: x.reshape(6, 4)),
    Case("reshape", {"x": X, "shape": ints(6, 4)}, expected=lambda x, shape: x.reshape(6, 4)),
    Case("expand_dims", {"x": X}, {"axes": [1, -1]}),
    Case("squeeze", {"x": X[:1, :, :1]}, {"axes": [0, -1]}),
    Case("squeeze", {"x": X[:1]}),
    Case("transpose", {"x": X}, {"perm": [2, 0, 1]}),
    Case("flatten2d", {"x": X4}, {"axis": 2}),
    Case("reverse", {"x": X}, {"axes": [0, 2]}),
    Case("shape", {"x": X}),
    Case("concat", {"values": [X, Y]}, {"axis": -1}),
    Case(
        "concat", {"values": [X, Y]}, {"axis": 1, "interleave": True}, lambda x, y: np.stack([x, y], 2).reshape(2, 6, 4)
    ),
    Case("stack", {"values": [X, Y]}, {"axis": -1}),
    Case("split", {"x": X}, {"split_sizes": [1, 3], "axis": -1}, lambda x: (x[..., :1], x[..., 1:])),
    Case("split", {"x": X}, {"num_splits": 2, "axis": -1}, lambda x: (x[..., :2], x[..., 2:])),
    Case("tile", {"x": X}, {"reps": [2, 1, 3]}),
    Case("pad", {"x": X}, {"pad": [1, 2, 0, 3], "mode": "constant", "constant_val": 7.0}),
    Case("pad", {"x": X}, {"pad": [1, 2, 2, 1], "mode": "reflect", "constant_val": 0.0}),
    Case("pad", {"x": X}, {"pad": [2, 1], "mode": "replicate", "constant_val": 0.0}),
    Case("slice_by_index", {"x": X}, {"begin": [0, 1, 1], "end": [2, 3, 4], "stride": [1, 1, 2]}),
    Case("slice_by_index", {"x": X}, {"begin": [0, 0, 1], "end": [2, 3, 3]}),
    Case(
        "slice_by_index",
        {"x": X},
        {"begin": [1, -1, 3], "end": [0, 0, 0], "stride": [1, -1, -2], "end_mask": [True, False, True]},
    ),
    Case("slice_by_index", {"x": X}, {"begin": [0, -2, 0], "end": [2, 0, 4], "squeeze_mask": [False, True, False]}),
    Case(
        "slice_by_index",
        {"x": X, "begin": ints(0, 1, 0), "end": ints(2, -1, 4)},
        expected=lambda x, begin, end: x[:, 1:-1, :],
    ),
    Case("slice_by_size", {"x": X}, {"begin": [0, 1, 2], "size": [2, 2, -1]}),
    Case("slice_update", {"x": X, "update": normal(2, 2, 4)}, {"begin": [0, 1, 0], "end": [2, 3, 4]}),
    Case(
        "slice_update",
        {"x": X, "update": normal(2, 1, 4), "begin": ints(0, 2, 0), "end": ints(2, 3, 4)},
        expected=lambda x, update, begin, end: np.concatenate([x[:, :2], update], 1),
    ),
    Case("gather", {"x": X, "indices": ints(2, 0, -1)}, {"axis": 1}),
    Case("gather", {"x": X, "indices": whole(0, 3, 2, 5)}, {"axis": 1, "batch_dims": 1}),
    Case("gather_along_axis", {"x": X, "indices": whole(0, 3, 2, 6, 4)}, {"axis": 1}),
    Case("gather_nd", {"x": X, "indices": ints(1, 2, 0, 0).reshape(2, 2)}, expected=lambda x, i: x[[1, 0], [2, 0]]),
    Case(
        "gather_nd",
        {"x": X, "indices": ints(2, 0).reshape(2, 1)},
        {"batch_dims": 1},
        lambda x, i: np.stack([x[0, 2], x[1, 0]]),
    ),
    Case(
        "scatter",
        {"data": X, "indices": ints(2, 0), "updates": normal(2, 2, 4)},
        {"axis": 1, "mode": "update"},
        lambda x, i, u: np.stack([u[:, 1], x[:, 1], u[:, 0]], 1),
    ),
    Case(
        "scatter",
        {"data": X, "indices": ints(1, 1), "updates": normal(2, 2, 4)},
        {"axis": 1, "mode": "add"},
        lambda x, i, u: np.stack([x[:, 0], x[:, 1] + u[:, 0] + u[:, 1], x[:, 2]], 1),
    ),
    Case("scatter_along_axis", (ROWS := _rows()), {"axis": 1, "mode": "update"}),
    Case("scatter_along_axis", ROWS, {"axis": 1, "mode": "add"}, lambda x, i, u: _put(x, i, u, np.add)),
    Case("scatter_along_axis", ROWS, {"axis": 1, "mode": "mul"}, lambda x, i, u: _put(x, i, u, np.multiply)),
    *(
        Case(
            "scatter_nd",
            {"data": X, "indices": ints(1, 2, 0, 0).reshape(2, 2), "updates": between(1, 2, 2, 4)},
            {"mode": mode},
            lambda x, i, u, combine=combine: _scattered(x, u, combine),
        )
        for mode, combine in {
            "update": lambda old, new: new,
            "sub": np.subtract,
            "div": np.divide,
            "max": np.maximum,
            "min": np.minimum,
        }.items()
    ),
    Case("fill", {"shape": ints(2, 3)}, {"value": 0.5}, lambda shape: np.full(shape, 0.5)),
    Case("fill_like", {"ref_tensor": X}, {"value": 0.5}, lambda x: np.full(x.shape, 0.5)),
    Case("range_1d", {"start": np.int32(2), "end": np.int32(9), "step": np.int32(3)}),
    Case(
        "one_hot",
        {"indices": ints(1, 3, 0)},
        {"one_hot_vector_size": 3, "axis": 0, "on_value": 2.0, "off_value": -1.0},
        lambda indices: np.where(indices[None] == np.arange(3)[:, None], 2.0, -1.0),
    ),
    Case("band_part", {"x": X}, {"lower": 0, "upper": 1}),
    Case("band_part", {"x": X}, {"lower": -1, "upper": 0}),
    Case("cumsum", {"x": X}, {"axis": 1}),
    Case("cumsum", {"x": X}, {"axis": 1, "reverse": True}, lambda x: x[:, ::-1].cumsum(1)[:, ::-1]),
    Case("cumsum", {"x": X}, {"axis": 1, "exclusive": True}, lambda x: x.cumsum(1) - x),
    Case("non_zero", {"x": COUNTS * TRUTH}),
    Case("topk", {"x": X}, {"k": 2, "axis": 1, "ascending": True}),
    Case("topk", {"x": X}, {"k": 3, "axis": -1}),
    Case("argsort", {"x": X}, {"axis": 1, "ascending": False}),
    Case("scaled_dot_product_attention", {"query": X4, "key": normal(2, 4, 3, 6), "value": normal(2, 4, 3, 7)}),
    Case(
        "scaled_dot_product_attention",
        {
            "query": X4,
            "key": normal(2, 4, 3, 6),
            "value": normal(2, 4, 3, 7),
            "attn_mask": np.tri(5, 3, dtype=np.bool_),
        },
    ),
    Case(
        "scaled_dot_product_attention",
        {"query": X4, "key": normal(2, 4, 3, 6), "value": normal(2, 4, 3, 7), "attn_mask": normal(5, 3)},
    ),
    Case(
        "conv",
        {"x": X4},
        {"weight": (POINT := normal(7, 4, 1, 1)), "bias": (BIAS := normal(7))},
        with_torch(lambda x: functional.conv2d(x, torch.from_numpy(POINT), torch.from_numpy(BIAS))),
    ),
    Case(
        "conv",
        {"x": X4[:, :, :1, :1]},
        {"weight": POINT},
        with_torch(lambda x: functional.conv2d(x, torch.from_numpy(POINT))),
    ),
    Case(
        "conv",
        {"x": X},
        {"weight": (DEPTH := normal(6, 1, 3)), "groups": 3, "pad_type": "custom", "pad": [2, 0], "dilations": [1]},
        with_torch(lambda x: functional.conv1d(functional.pad(x, (2, 0)), torch.from_numpy(DEPTH), groups=3)),
    ),
    Case(
        "conv",
        {"x": X4},
        {"weight": (SQUARE := normal(3, 4, 2, 3)), "strides": [2, 1], "pad_type": "same"},
        with_torch(
            lambda x: functional.conv2d(functional.pad(x, (1, 1, 0, 1)), torch.from_numpy(SQUARE), stride=(2, 1))
        ),
    ),
    Case(
        "conv",
        {"x": X4},
        {"weight": SQUARE, "strides": [2, 1], "pad_type": "same_lower"},
        with_torch(
            lambda x: functional.conv2d(functional.pad(x, (1, 1, 1, 0)), torch.from_numpy(SQUARE), stride=(2, 1))
        ),
    ),
    Case(
        "dequantize",
        {"input": whole(-9, 9, 2, 3).astype(np.int8)},
        {"scale": np.float32(0.5), "zero_point": np.int8(2)},
        lambda x: 0.5 * (x - 2.0),
    ),
    Case(
        "dequantize",
        {"input": whole(-9, 9, 2, 3).astype(np.int8)},
        {"scale": np.array([0.5, 1, 2], np.float32), "axis": 1},
        lambda x: np.array([0.5, 1, 2]) * x,
    ),
    Case(
        "quantize",
        {"input": 40 * normal(2, 3)},
        {"scale": np.float32(0.25), "zero_point": np.int8(3), "output_dtype": "int8"},
        lambda x: np.clip(np.round(x / 0.25) + 3, -128, 127),
    ),
]  # fmt: skip
