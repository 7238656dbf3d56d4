"""One file per topic; importing this package registers every operator that the interpreter has."""

from exporter.targets.coreml.interpreter.operators import (
    activation,
    attention,
    convolution,
    elementwise,
    gathering,
    generation,
    layout,
    linear,
    normalization,
    quantization,
    reduction,
    slicing,
    sorting,
)

__all__ = [
    "activation",
    "attention",
    "convolution",
    "elementwise",
    "gathering",
    "generation",
    "layout",
    "linear",
    "normalization",
    "quantization",
    "reduction",
    "slicing",
    "sorting",
]
