"""The audit of an ExecuTorch program's products: none may run where it does not belong."""

from __future__ import annotations

import pytest

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from exporter.errors import GateFailed
from exporter.recipe import ExecutorchSection
from exporter.targets.executorch.xnnpack.lower import audit_products
from exporter.targets.executorch.xnnpack.program import MethodFigures

ROUNDED, FLOAT = (ExecutorchSection(activation_bits=bits) for bits in (8, 32))


def method(delegates: int, **operators: int) -> dict[str, MethodFigures]:
    named = {name.replace("__", "::") + ".out": count for name, count in operators.items()}
    return {"forward": MethodFigures("forward", delegates, named, 0, (), ())}


@pytest.mark.parametrize("delegates", [9, 5, 1])
def test_products_that_hang_together_may_be_one_delegate(delegates: int) -> None:
    audit_products(9, ROUNDED, method(delegates, aten__add=3))


@pytest.mark.parametrize(
    "figures",
    [
        method(0),
        method(10),
        method(9, aten__mm=1),
        method(5, aten__linear=4),
        method(8, quantized_decomposed__dequantize_per_channel=1),
        method(8, quantized_decomposed__choose_qparams_per_token_asymmetric=1),
    ],
)
def test_a_product_outside_of_xnnpack_fails(figures: dict[str, MethodFigures]) -> None:
    with pytest.raises(GateFailed, match="where they belong"):
        audit_products(9, ROUNDED, figures)


@pytest.mark.parametrize("count", [8, 10])
def test_every_product_of_float_activations_is_an_operator_of_its_own(count: int) -> None:
    audit_products(9, FLOAT, method(0, slm__linear=9))
    with pytest.raises(GateFailed, match=f"has {count} products"):
        audit_products(9, FLOAT, method(0, slm__linear=count))
