"""Activation functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from exporter.errors import GateFailed
from exporter.targets.coreml.interpreter.operators.base import OPERATORS, Call, Definition, Kernel, operator

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "softsign": functional.softsign,
}


def _plain(function: Callable[[torch.Tensor], torch.Tensor]) -> Definition:
    return lambda call: Kernel(function, ("x",))


for _name, _function in ACTIVATIONS.items():
    OPERATORS.add(_name, _plain(_function))

GELU = {
    "EXACT": functional.gelu,
    "TANH_APPROXIMATION": lambda x: functional.gelu(x, approximate="tanh"),
    "SIGMOID_APPROXIMATION": lambda x: x * torch.sigmoid(1.702 * x),
}


@operator("gelu")
def gelu(call: Call) -> Kernel:
    mode = call.text("mode", "EXACT")
    if mode not in GELU:
        raise GateFailed(f"gelu {call.operation.name}: mode {mode!r} is not one of MIL", "convert it again")
    return Kernel(GELU[mode], ("x",))


@operator("softmax")
def softmax(call: Call) -> Kernel:
    axis = call.integer("axis", -1)
    return Kernel(lambda x: torch.softmax(x, axis), ("x",))


@operator("leaky_relu")
def leaky_relu(call: Call) -> Kernel:
    alpha = call.number("alpha")
    return Kernel(lambda x: functional.leaky_relu(x, alpha), ("x",))


@operator("elu")
def elu(call: Call) -> Kernel:
    alpha = call.number("alpha")
    return Kernel(lambda x: functional.elu(x, alpha), ("x",))


@operator("prelu")
def prelu(call: Call) -> Kernel:
    """One slope per channel, axis 1."""
    return Kernel(functional.prelu, ("x", "alpha"))


@operator("thresholded_relu")
def thresholded_relu(call: Call) -> Kernel:
    """x where x >= alpha, else 0."""
    alpha = call.number("alpha")
    return Kernel(lambda x: torch.where(x >= alpha, x, torch.zeros_like(x)), ("x",))


@operator("clamped_relu")
def clamped_relu(call: Call) -> Kernel:
    """min(beta, x where x >= 0 else alpha x)."""
    alpha, beta = call.number("alpha"), call.number("beta")
    return Kernel(lambda x: torch.clamp(functional.leaky_relu(x, alpha), max=beta), ("x",))


@operator("linear_activation")
def linear_activation(call: Call) -> Kernel:
    alpha, beta = call.number("alpha"), call.number("beta")
    return Kernel(lambda x: alpha * x + beta, ("x",))


@operator("scaled_tanh")
def scaled_tanh(call: Call) -> Kernel:
    alpha, beta = call.number("alpha"), call.number("beta")
    return Kernel(lambda x: alpha * torch.tanh(beta * x), ("x",))


@operator("sigmoid_hard")
def sigmoid_hard(call: Call) -> Kernel:
    alpha, beta = call.number("alpha"), call.number("beta")
    return Kernel(lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0), ("x",))


@operator("softplus_parametric")
def softplus_parametric(call: Call) -> Kernel:
    """alpha ln(1 + exp(beta x)), one alpha and beta per channel, axis 1."""
    shape = (-1,) + (1,) * (call.rank("x") - 2)

    def run(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
        return alpha.reshape(shape) * torch.logaddexp(beta.reshape(shape) * x, torch.zeros_like(x))

    return Kernel(run, ("x", "alpha", "beta"))
