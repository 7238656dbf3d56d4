"""Constants as tensors: decoded once per package, compressed ones expanded, float32 in C order."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from exporter.errors import GateFailed
from exporter.targets.coreml.interpreter.compression import EXPANSIONS
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.interpreter.precision import Precision, round_in_place
from exporter.targets.coreml.interpreter.program import (
    Argument,
    BlobReference,
    Constant,
    Function,
    Immediate,
    Operation,
)
from exporter.targets.coreml.interpreter.types import ElementType, TensorType

NAME_ATTRIBUTE = "name"
CONST = "const"


class ConstantPool:
    """Decoded tensors by where they come from, so that functions that refer to one blob share one tensor."""

    def __init__(self, package: Package, precision: Precision) -> None:
        self.package, self.precision = package, precision
        self._tensors: dict[Hashable, torch.Tensor] = {}

    def cached(self, key: Hashable) -> torch.Tensor | None:
        return self._tensors.get(key)

    def keep(self, key: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        self._tensors[key] = tensor
        return tensor

    def decode(self, constant: Constant) -> torch.Tensor | str:
        """One constant, not kept. Raises GateFailed when its blob is broken."""
        if isinstance(constant, Immediate):
            if isinstance(constant.value, str):
                return constant.value
            return torch.from_numpy(constant.value.astype(_numpy_like(constant.type.dtype)))
        shape = [size or 0 for size in constant.type.shape]
        array = self.package.weight_file(constant).elements(
            constant.offset, constant.type.dtype, constant.type.elements
        )
        if constant.type.dtype is ElementType.FP16:
            return torch.from_numpy(array).float().reshape(shape)
        return torch.from_numpy(array.astype(_numpy_like(constant.type.dtype), copy=False)).reshape(shape)


def _numpy_like(dtype: ElementType) -> str:
    return str(dtype.computed).removeprefix("torch.")


class FunctionConstants:
    """What is constant in one function, by name: `const` operations and results of constexpr operations."""

    def __init__(self, function: Function, pool: ConstantPool) -> None:
        self.function, self._pool = function, pool
        self._sources: dict[str, Constant | tuple[Operation, int]] = {}
        for operation in function.operations:
            if operation.operator == CONST:
                self._sources[operation.name] = operation.attributes["val"]
            elif operation.operator in EXPANSIONS:
                for index, result in enumerate(operation.results):
                    self._sources[result.name] = (operation, index)

    def __contains__(self, argument: Argument) -> bool:
        return not isinstance(argument, str) or argument in self._sources

    def tensor(self, argument: Argument) -> torch.Tensor | str:
        """A constant argument, large ones shared by the functions of a package."""
        source = self._sources[argument] if isinstance(argument, str) else argument
        if isinstance(source, Immediate):
            return self._pool.decode(source)
        key = self._key(argument)
        cached = self._pool.cached(key)
        if cached is not None:
            return cached
        tensor = self._pool.decode(source) if isinstance(source, BlobReference) else self._expand(*source)
        return tensor if isinstance(tensor, str) else self._pool.keep(key, tensor)

    def _expand(self, operation: Operation, index: int) -> torch.Tensor:
        parameters = {**{name: values[0] for name, values in operation.inputs.items()}, **operation.attributes}
        values = {name: self._operand(value) for name, value in parameters.items() if name != NAME_ATTRIBUTE}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        try:
            result = EXPANSIONS.get(operation.operator)(tensors)[index]
        except (RuntimeError, KeyError, ValueError, IndexError) as fault:
            raise self._broken(operation, f"cannot be expanded ({str(fault).splitlines()[0]})") from None
        declared = operation.results[index].type
        if not declared.accepts(tuple(result.shape)):
            raise self._broken(operation, f"declares {declared} and expands to {list(result.shape)}")
        return self._finish(result, declared)

    def _operand(self, argument: Argument) -> torch.Tensor | str:
        """A parameter of a constexpr operation: only results of other ones are kept, since codes are needed once."""
        source = self._sources.get(argument) if isinstance(argument, str) else argument
        if isinstance(source, Immediate | BlobReference):
            return self._pool.decode(source)
        return self.tensor(argument)

    def _finish(self, result: torch.Tensor, declared: TensorType) -> torch.Tensor:
        result = result.to(declared.dtype.computed).contiguous()
        if declared.dtype is ElementType.FP16 and self._pool.precision is Precision.FP16:
            return round_in_place(result)
        return result

    def _key(self, argument: Argument) -> Hashable:
        """What a constant is made of, the same in every function that is made of the same."""
        source = self._sources[argument] if isinstance(argument, str) else argument
        if isinstance(source, Immediate):
            value = source.value if isinstance(source.value, str) else source.value.tobytes()
            return source.type, value
        if isinstance(source, BlobReference):
            return source
        operation, index = source
        parts = [(name, self._key(values[0])) for name, values in sorted(operation.inputs.items())]
        parts += [
            (name, self._key(value)) for name, value in sorted(operation.attributes.items()) if name != NAME_ATTRIBUTE
        ]
        return operation.operator, index, operation.results[index].type, tuple(parts)

    def _broken(self, operation: Operation, problem: str) -> GateFailed:
        where = f"{self._pool.package.path}: function {self.function.name}"
        return GateFailed(f"{where}: {operation.operator} {operation.name} {problem}", "convert it again")
