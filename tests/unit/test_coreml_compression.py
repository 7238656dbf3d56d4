"""Every way in which a weight can be compressed, as a saved package expands it, against coremltools' own expansion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coreml_programs import ct, mb, save_program

from coremltools.converters.mil.mil.types import type_int  # isort: skip

from exporter.targets.coreml.interpreter.machine import Interpreter, Precision

RANDOM = np.random.default_rng(1)
ROWS, COLUMNS = 6, 64


def codes(kind: str, *shape: int) -> np.ndarray:
    """Random elements of an element type under a byte, or of one byte."""
    signed, bits = kind.startswith("int"), int(kind.lstrip("uint"))
    low = -(1 << (bits - 1)) if signed else 0
    values = RANDOM.integers(low, low + (1 << bits), shape)
    return values.astype(kind if bits == 8 else getattr(type_int, f"np_{kind}_dtype"))


def half(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float16)


def mask() -> np.ndarray:
    return codes("uint1", ROWS, COLUMNS)


def _sparse(pair: Any) -> Any:
    return mb.constexpr_sparse_to_dense(mask=pair[0], nonzero_data=pair[1])


def _under(chosen: np.ndarray, kind: str) -> np.ndarray:
    return codes(kind, int(np.count_nonzero(chosen)))


def _lut_to_sparse(vector: int) -> Any:
    chosen = mask()
    settings = {"vector_axis": 1} if vector > 1 else {}
    pair = mb.constexpr_lut_to_sparse(
        indices_mask=chosen, indices_nonzero_data=_under(chosen, "uint4"), lut=half(1, 1, 16, vector), **settings
    )
    return _sparse(pair)


def _sparse_scaled() -> Any:
    chosen = mask()
    return _sparse(
        mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=chosen, nonzero_data=_under(chosen, "int4"), scale=half(ROWS, 2), offset=codes("int4", ROWS, 2)
        )
    )


def _lut_of_int8() -> Any:
    table = mb.constexpr_blockwise_shift_scale(data=codes("int8", 1, 1, 16, 1), scale=half(1, 1, 1, 1))
    return mb.constexpr_lut_to_dense(indices=codes("uint4", ROWS, COLUMNS), lut=table)


IOS18: dict[str, Callable[[], Any]] = {
    "int4 per block": lambda: mb.constexpr_blockwise_shift_scale(
        data=codes("int4", ROWS, COLUMNS), scale=half(ROWS, 2)
    ),
    "uint4 with offset": lambda: mb.constexpr_blockwise_shift_scale(
        data=codes("uint4", ROWS, COLUMNS), scale=half(ROWS, 2), offset=codes("uint4", ROWS, 2)
    ),
    "int8 per channel": lambda: mb.constexpr_blockwise_shift_scale(
        data=codes("int8", ROWS, COLUMNS), scale=half(ROWS, 1)
    ),
    "blocks on both axes": lambda: mb.constexpr_blockwise_shift_scale(
        data=codes("int8", ROWS, COLUMNS), scale=half(3, 4), offset=codes("int8", 3, 4)
    ),
    **{
        f"{kind} table": lambda kind=kind: mb.constexpr_lut_to_dense(  # type: ignore[misc]
            indices=codes(kind, ROWS, COLUMNS), lut=half(1, 1, 1 << int(kind[4:]), 1)
        )
        for kind in ("uint1", "uint2", "uint3", "uint4", "uint6", "uint8")
    },
    "tables per group": lambda: mb.constexpr_lut_to_dense(indices=codes("uint4", ROWS, COLUMNS), lut=half(3, 2, 16, 1)),
    "vectors on axis 0": lambda: mb.constexpr_lut_to_dense(
        indices=codes("uint2", ROWS, COLUMNS), lut=half(1, 1, 4, 2), vector_axis=0
    ),
    "vectors on axis 1": lambda: mb.constexpr_lut_to_dense(
        indices=codes("uint4", ROWS, COLUMNS), lut=half(2, 1, 16, 4), vector_axis=1
    ),
    "table of int8": _lut_of_int8,
    "sparse": lambda: _sparse((chosen := mask(), half(int(np.count_nonzero(chosen))))),
    "sparse table": lambda: _lut_to_sparse(1),
    "sparse vectors": lambda: _lut_to_sparse(2),
    "sparse int4": _sparse_scaled,
}

IOS16: dict[str, Callable[[], Any]] = {
    "affine per channel": lambda: mb.constexpr_affine_dequantize(
        quantized_data=codes("int8", ROWS, COLUMNS), scale=half(COLUMNS), zero_point=codes("int8", COLUMNS), axis=1
    ),
    "affine per tensor": lambda: mb.constexpr_affine_dequantize(
        quantized_data=codes("uint8", ROWS, COLUMNS), scale=np.float16(0.3), zero_point=np.uint8(7), axis=0
    ),
    **{
        f"{bits} bit table": lambda bits=bits: mb.constexpr_lut_to_dense(  # type: ignore[misc]
            indices=codes("uint8", ROWS * COLUMNS * bits // 8), lut=half(1 << bits), shape=np.uint32([ROWS, COLUMNS])
        )
        for bits in (1, 2, 4, 6, 8)
    },
    "sparse bytes": lambda: _packed_sparse(),
    "cast": lambda: mb.constexpr_cast(source_val=half(ROWS, COLUMNS), output_dtype="fp32"),
}


def _packed_sparse() -> Any:
    chosen = RANDOM.random(ROWS * COLUMNS) < 0.5
    return mb.constexpr_sparse_to_dense(
        mask=np.packbits(chosen, bitorder="little"),
        nonzero_data=half(int(chosen.sum())),
        shape=np.uint32([ROWS, COLUMNS]),
    )


def _expanded(operation: Any) -> np.ndarray:
    """coremltools' expansion; it does not follow a table that is compressed itself."""
    if operation.op_type == "constexpr_lut_to_dense" and operation.lut.val is None:
        table = operation.lut.op.materialized_val_inference()
        return operation.decompress(operation.indices.val, table, None)
    return operation.materialized_val_inference()


Saved = tuple[Path, dict[str, np.ndarray]]


def save(folder: Path, builders: dict[str, Callable[[], Any]], target: Any) -> Saved:
    expected: dict[str, np.ndarray] = {}

    def build(x: Any) -> list[Any]:
        outputs = []
        for number, (name, make) in enumerate(builders.items()):
            weight = make()
            expected[name] = _expanded(weight.op)
            outputs.append(mb.cast(x=mb.identity(x=weight), dtype="fp32", name=f"case_{number}"))
        return [*outputs, mb.identity(x=x)]

    path = save_program(folder, build, {"x": ((1,), "float32")}, target=target)
    return path, expected


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    return {
        "iOS18": save(tmp_path_factory.mktemp("ios18"), IOS18, ct.target.iOS18),
        "iOS16": save(tmp_path_factory.mktemp("ios16"), IOS16, ct.target.iOS16),
    }


@pytest.mark.parametrize("precision", Precision, ids=lambda precision: precision.value)
@pytest.mark.parametrize("target", ["iOS18", "iOS16"])
def test_an_expanded_constant_is_what_coremltools_expands(
    packages: dict[str, Saved], target: str, precision: Precision
) -> None:
    path, expected = packages[target]
    outputs = Interpreter.open(path, precision).run("main", {"x": [0.0]})
    for number, (name, reference) in enumerate(expected.items()):
        actual = outputs[f"case_{number}"]
        assert actual.shape == reference.shape, name
        if precision is Precision.FP16:
            np.testing.assert_array_equal(actual, reference.astype(np.float32), err_msg=name)
        else:
            np.testing.assert_allclose(actual, reference.astype(np.float32), rtol=2.0**-11, err_msg=name)


def test_every_constexpr_operator_is_among_the_cases(packages: dict[str, Saved]) -> None:
    from exporter.targets.coreml.interpreter.compression import EXPANSIONS
    from exporter.targets.coreml.interpreter.package import Package

    used = {
        operation.operator
        for path, _ in packages.values()
        for function in Package.open(path).program.functions.values()
        for operation in function.operations
    }
    assert set(EXPANSIONS) - used == set()
