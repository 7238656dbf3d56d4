"""Arithmetic, comparison and logic, element by element with broadcasting; casts; selection."""

from __future__ import annotations

from collections.abc import Callable

import torch

from exporter.targets.coreml.interpreter.operators.base import OPERATORS, Call, Effect, Kernel, operator
from exporter.targets.coreml.interpreter.types import ElementType

BINARY: dict[str, Callable[..., torch.Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "real_div": torch.true_divide,
    "floor_div": torch.floor_divide,
    "mod": torch.remainder,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}

UNARY: dict[str, Callable[..., torch.Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}


def _plain(function: Callable[..., torch.Tensor], *operands: str) -> Callable[[Call], Kernel]:
    return lambda call: Kernel(function, operands)


for _name, _function in BINARY.items():
    OPERATORS.add(_name, _plain(_function, "x", "y"))
for _name, _function in UNARY.items():
    OPERATORS.add(_name, _plain(_function, "x"))


@operator("rsqrt")
def rsqrt(call: Call) -> Kernel:
    """1 / sqrt(x + epsilon)."""
    epsilon = call.number("epsilon", 1e-12)
    return Kernel(lambda x: torch.rsqrt(x + epsilon), ("x",))


@operator("inverse")
def inverse(call: Call) -> Kernel:
    """1 / (x + epsilon)."""
    epsilon = call.number("epsilon", 1e-4)
    return Kernel(lambda x: torch.reciprocal(x + epsilon), ("x",))


@operator("log")
def log(call: Call) -> Kernel:
    """ln(x + epsilon)."""
    epsilon = call.number("epsilon", 1e-45)
    return Kernel(lambda x: torch.log(x + epsilon), ("x",))


@operator("clip")
def clip(call: Call) -> Kernel:
    low, high = call.number("alpha"), call.number("beta")
    return Kernel(lambda x: torch.clamp(x, low, high), ("x",))


@operator("threshold")
def threshold(call: Call) -> Kernel:
    """max(x, alpha)."""
    low = call.number("alpha")
    return Kernel(lambda x: torch.clamp(x, min=low), ("x",))


@operator("cast")
def cast(call: Call) -> Kernel:
    """Floats become integers by truncation. The result's type says what to cast to, and is rounded like any computed value."""
    source, target = call.types["x"].dtype, call.output.dtype
    if source is target or (source is ElementType.FP16 and target is ElementType.FP32):
        return Kernel(lambda x: x, ("x",), Effect.VIEWS)
    kind = target.computed
    return Kernel(lambda x: x.to(kind, copy=True), ("x",))


@operator("select")
def select(call: Call) -> Kernel:
    """`a` where `cond` holds, else `b`; both are broadcast."""
    return Kernel(torch.where, ("cond", "a", "b"), Effect.COPIES)
