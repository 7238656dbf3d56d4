"""An ML Program as plain frozen dataclasses, read from its protobuf messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from exporter.errors import GateFailed, UsageError
from exporter.targets.coreml.interpreter.schema import model_messages
from exporter.targets.coreml.interpreter.storage import unpack_elements
from exporter.targets.coreml.interpreter.types import ElementType, TensorType


@dataclass(frozen=True)
class Immediate:
    """A constant that stands in the program itself: an array, or a string."""

    type: TensorType
    value: np.ndarray | str


@dataclass(frozen=True)
class BlobReference:
    """A constant that lies in a weight file, named by the offset of its record."""

    type: TensorType
    file: str
    offset: int


Constant = Immediate | BlobReference
Argument = str | Constant
"""The name of a value, or a constant in place."""


@dataclass(frozen=True)
class Result:
    """One output of an operation."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Operation:
    """One operation. A parameter has several arguments only where the operator takes a list (`concat`)."""

    operator: str
    inputs: Mapping[str, tuple[Argument, ...]]
    attributes: Mapping[str, Constant]
    results: tuple[Result, ...]
    blocks: tuple[tuple[Operation, ...], ...] = ()
    """Bodies of control flow, which the interpreter only counts."""

    @property
    def name(self) -> str:
        return self.results[0].name if self.results else self.operator

    @property
    def constants(self) -> Iterator[Constant]:
        yield from self.attributes.values()
        for arguments in self.inputs.values():
            yield from (item for item in arguments if not isinstance(item, str))


@dataclass(frozen=True)
class FlexibleShape:
    """What shapes the description of a model allows for an input: any of `enumerated`, or sizes within `ranges` (upper bound None:
    no bound). `default` is always one of them."""

    default: tuple[int, ...]
    enumerated: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()

    def allows(self, shape: tuple[int, ...]) -> bool:
        if self.enumerated:
            return shape in self.enumerated
        return len(shape) == len(self.ranges) and all(
            low <= size and (high is None or size <= high) for size, (low, high) in zip(shape, self.ranges, strict=True)
        )

    def __str__(self) -> str:
        if self.enumerated:
            return "one of " + ", ".join(str(list(shape)) for shape in self.enumerated)
        return " x ".join(str(low) if low == high else f"{low}..{high or ''}" for low, high in self.ranges)


@dataclass(frozen=True)
class Function:
    """One function: operations in the order in which they run."""

    name: str
    opset: str
    inputs: Mapping[str, TensorType]
    states: Mapping[str, TensorType]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    flexible: Mapping[str, FlexibleShape] = field(default_factory=dict)

    def all_operations(self) -> Iterator[Operation]:
        """Every operation, the bodies of control flow included."""
        pending = list(reversed(self.operations))
        while pending:
            operation = pending.pop()
            yield operation
            pending += [inner for block in reversed(operation.blocks) for inner in reversed(block)]


@dataclass(frozen=True)
class Program:
    """All functions of a package."""

    specification_version: int
    default_function: str
    functions: Mapping[str, Function]


def parse_program(data: bytes, source: str) -> Program:
    """Reads the bytes of a model file. Raises UsageError when they hold no ML Program."""
    model_module, _ = model_messages()
    from google.protobuf.message import DecodeError

    model = model_module.Model()
    try:
        model.ParseFromString(data)
    except DecodeError as fault:
        raise GateFailed(
            f"{source}: not a Core ML model ({fault})", "copy the package again; the file is cut off"
        ) from None
    if model.WhichOneof("Type") != "mlProgram":
        kind = model.WhichOneof("Type") or "nothing"
        raise UsageError(f"{source}: holds {kind}, not an ML Program", "convert it with convert_to='mlprogram'")
    default = model.description.defaultFunctionName or "main"
    described = {item.name: item.input for item in model.description.functions} or {default: model.description.input}
    functions = {
        name: _function(name, message, _flexible_shapes(described.get(name, ())), source)
        for name, message in sorted(model.mlProgram.functions.items())
    }
    return Program(model.specificationVersion, default, functions)


def _function(name: str, message: Any, flexible: dict[str, FlexibleShape], source: str) -> Function:
    block = message.block_specializations.get(message.opset)
    if block is None:
        raise GateFailed(f"{source}: function {name} has no block for its opset {message.opset!r}", "convert it again")
    kinds = {item.name: item.type.WhichOneof("type") for item in message.inputs}
    types = {item.name: value_type(item.type, source) for item in message.inputs}
    return Function(
        name,
        message.opset,
        {item: types[item] for item, kind in kinds.items() if kind != "stateType"},
        {item: types[item] for item, kind in kinds.items() if kind == "stateType"},
        tuple(_operation(item, source) for item in block.operations),
        tuple(block.outputs),
        flexible,
    )


def _operation(message: Any, source: str) -> Operation:
    return Operation(
        message.type,
        {
            name: tuple(
                binding.name if binding.WhichOneof("binding") == "name" else _constant(binding.value, source)
                for binding in argument.arguments
            )
            for name, argument in message.inputs.items()
        },
        {name: _constant(value, source) for name, value in message.attributes.items()},
        tuple(Result(item.name, value_type(item.type, source)) for item in message.outputs),
        tuple(tuple(_operation(item, source) for item in block.operations) for block in message.blocks),
    )


def value_type(message: Any, source: str) -> TensorType:
    """A tensor type, of a state the type that it wraps. Lists, tuples and dictionaries have no tensor type: they count as a scalar
    string, and only operators that the interpreter lacks produce them."""
    kind = message.WhichOneof("type")
    if kind == "stateType":
        return value_type(message.stateType.wrappedType, source)
    if kind != "tensorType":
        return TensorType((), ElementType.STRING)
    sizes = (
        item.constant.size if item.WhichOneof("dimension") == "constant" else None
        for item in message.tensorType.dimensions
    )
    return TensorType(tuple(sizes), _element_type(message.tensorType.dataType, source))


def _element_type(number: int, source: str) -> ElementType:
    _, program_module = model_messages()
    name = program_module.DataType.Name(number) if number in program_module.DataType.values() else str(number)
    try:
        return ElementType(name.lower().replace("float", "fp"))
    except ValueError:
        raise UsageError(
            f"{source}: elements of type {name} are not supported", "convert it with a supported type"
        ) from None


def _constant(message: Any, source: str) -> Constant:
    tensor_type = value_type(message.type, source)
    if message.WhichOneof("value") == "blobFileValue":
        return BlobReference(tensor_type, message.blobFileValue.fileName, message.blobFileValue.offset)
    if message.immediateValue.WhichOneof("value") != "tensor":
        return Immediate(TensorType((), ElementType.STRING), "")
    tensor = message.immediateValue.tensor
    if tensor_type.dtype is ElementType.STRING:
        return Immediate(tensor_type, tensor.strings.values[0] if tensor.strings.values else "")
    array = _immediate_array(tensor, tensor_type)
    if array.size != tensor_type.elements:
        raise GateFailed(f"{source}: a constant of {tensor_type} holds {array.size} elements", "convert it again")
    return Immediate(tensor_type, array.reshape([size or 0 for size in tensor_type.shape]))


def _immediate_array(tensor: Any, tensor_type: TensorType) -> np.ndarray:
    kind, dtype = tensor.WhichOneof("value"), tensor_type.dtype
    if kind is None:
        return np.zeros(0, dtype.storage)
    if kind != "bytes":
        return np.array(getattr(tensor, kind).values).astype(dtype.storage)
    return unpack_elements(tensor.bytes.values, dtype, tensor_type.elements)


def _flexible_shapes(inputs: Any) -> dict[str, FlexibleShape]:
    """Shapes that a model's description allows, of the inputs that have more than one."""
    shapes = {}
    for item in inputs:
        array = item.type.multiArrayType
        kind = array.WhichOneof("ShapeFlexibility")
        default = tuple(array.shape)
        if kind == "enumeratedShapes":
            allowed = tuple(tuple(each.shape) for each in array.enumeratedShapes.shapes)
            shapes[item.name] = FlexibleShape(default or allowed[0], enumerated=allowed)
        elif kind == "shapeRange":
            ranges = tuple(
                (each.lowerBound, None if each.upperBound < 0 else each.upperBound)
                for each in array.shapeRange.sizeRanges
            )
            shapes[item.name] = FlexibleShape(default or tuple(low for low, _ in ranges), ranges=ranges)
    return shapes
