"""What is in a Core ML package, as JSON: for a person, a CI job, or whoever ships a package that others made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.targets.coreml.audit import (
    Blob,
    blobs,
    compressed_constants,
    duplicate_bytes,
    duplicates,
    operator_histogram,
    stale_state_reads,
    state_writes,
)
from exporter.targets.coreml.interpreter.machine import lacking_operators
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.interpreter.program import Function
from exporter.targets.coreml.interpreter.signature import Signature
from exporter.targets.coreml.interpreter.types import TensorType


def inspect_package(path: Path) -> dict[str, Any]:
    """Reads a package without running it. Raises UsageError (not a package), GateFailed (broken), ToolchainMissing."""
    package = Package.open(path)
    found = blobs(package)
    program = package.program
    return {
        "package": str(path),
        "specification_version": program.specification_version,
        "default_function": program.default_function,
        "functions": {name: _function_facts(function) for name, function in program.functions.items()},
        "lacking_operators": lacking_operators(program),
        "weights": {
            "file_bytes": sum(package.weight_file_sizes().values()),
            "blob_bytes": sum(blob.bytes for blob in found),
            "duplicate_bytes": duplicate_bytes(found),
            "duplicates": [[_blob_facts(blob) for blob in group] for group in duplicates(found)],
            "blobs": [_blob_facts(blob) for blob in found],
        },
    }


def _function_facts(function: Function) -> dict[str, Any]:
    signature = Signature.of(function)
    writes = state_writes(function)
    return {
        "opset": function.opset,
        "inputs": {
            name: {**_type_facts(declared), "default_shape": list(signature.default_shape(name))}
            | ({"allowed": str(signature.flexible[name])} if name in signature.flexible else {})
            for name, declared in signature.inputs.items()
        },
        "outputs": {name: _type_facts(declared) for name, declared in signature.outputs.items()},
        "states": {
            name: {**_type_facts(declared), "writes": writes[name]} for name, declared in signature.states.items()
        },
        "stale_state_reads": {name: list(users) for name, users in stale_state_reads(function).items()},
        "operators": operator_histogram(function),
        "compressed_constants": [
            {
                "name": item.name,
                "operators": list(item.chain),
                "shape": list(item.shape),
                "stored_bytes": item.stored_bytes,
                "dense_bytes": item.dense_bytes,
                "used_by": list(item.users),
            }
            for item in compressed_constants(function)
        ],
    }


def _type_facts(declared: TensorType) -> dict[str, Any]:
    """A size of null is open; bytes count it as one."""
    return {"dtype": declared.dtype.value, "shape": list(declared.shape), "bytes": declared.bytes}


def _blob_facts(blob: Blob) -> dict[str, Any]:
    return {
        "file": blob.file,
        "offset": blob.offset,
        "dtype": blob.dtype.value,
        "bytes": blob.bytes,
        "sha256": blob.sha256,
        "functions": list(blob.functions),
    }
