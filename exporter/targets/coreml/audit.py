"""Audits of a saved ML Program: what a converter may have dropped, merged, compressed by mistake, or stored twice without a word."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from exporter.targets.coreml.interpreter.compression import EXPANSIONS
from exporter.targets.coreml.interpreter.constants import CONST
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.interpreter.program import BlobReference, Function, Operation
from exporter.targets.coreml.interpreter.types import ElementType

READ_STATE, WRITE_STATE = "read_state", "write_state"


def operator_histogram(function: Function) -> dict[str, int]:
    """How often each operator occurs, the commonest first; `const` is left out."""
    counts = Counter(operation.operator for operation in function.all_operations() if operation.operator != CONST)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def state_writes(function: Function) -> dict[str, int]:
    """How often each state is written. 0 for one that is only declared: an update that a tracer dropped looks like that."""
    writes = dict.fromkeys(function.states, 0)
    for operation in function.all_operations():
        if operation.operator == WRITE_STATE:
            (state,) = operation.inputs["input"]
            writes[str(state)] = writes.get(str(state), 0) + 1
    return writes


def stale_state_reads(function: Function) -> dict[str, tuple[str, ...]]:
    """By state, the operations that still use a value that was read before the state's last write before them.

    A second `read_state` that a converter merged into the first one leaves this trace. It can also be meant: a program may compare
    old and new.
    """
    version: dict[str, int] = defaultdict(int)
    read: dict[str, tuple[str, int]] = {}
    stale: dict[str, list[str]] = defaultdict(list)
    for operation in function.operations:
        names = [item for arguments in operation.inputs.values() for item in arguments if isinstance(item, str)]
        for name in names:
            if name in read and read[name][1] != version[read[name][0]]:
                stale[read[name][0]].append(operation.name)
        if operation.operator == READ_STATE:
            read[operation.name] = (names[0], version[names[0]])
        elif operation.operator == WRITE_STATE:
            version[str(operation.inputs["input"][0])] += 1
    return {state: tuple(users) for state, users in stale.items()}


@dataclass(frozen=True)
class CompressedConstant:
    """One compressed constant: the chain of constexpr operations that expands it, the bytes that it takes in the package and those that
    it would take dense, and the operators that use it."""

    name: str
    chain: tuple[str, ...]
    shape: tuple[int, ...]
    stored_bytes: int
    dense_bytes: int
    users: tuple[str, ...]

    @property
    def exploded(self) -> bool:
        """Larger than without compression."""
        return self.stored_bytes > self.dense_bytes


def compressed_constants(function: Function) -> list[CompressedConstant]:
    """Every compressed constant that a function computes with. A table of angles among them is one that a global configuration
    quantized; one that is exploded has tables larger than the indices that they save."""
    makers = {result.name: item for item in function.operations for result in item.results}
    users: dict[str, list[str]] = defaultdict(list)
    for operation in function.operations:
        for name in _names(operation):
            if name in makers and makers[name].operator in EXPANSIONS and operation.operator not in EXPANSIONS:
                users[name].append(operation.operator)
    found = []
    for name, operators in users.items():
        maker = makers[name]
        declared = next(result.type for result in maker.results if result.name == name)
        chain, blobs = _chain(maker, makers)
        found.append(
            CompressedConstant(
                name,
                tuple(chain),
                tuple(size or 0 for size in declared.shape),
                sum(blob.type.bytes for blob in blobs),
                declared.bytes,
                tuple(operators),
            )
        )
    return found


def _names(operation: Operation) -> Iterator[str]:
    for arguments in operation.inputs.values():
        yield from (item for item in arguments if isinstance(item, str))


def _chain(operation: Operation, makers: Mapping[str, Operation]) -> tuple[list[str], set[BlobReference]]:
    """The constexpr operations behind one, the last one first, and the blobs that they are made of."""
    chain: list[str] = []
    blobs: set[BlobReference] = set()
    pending, seen = [operation], set[str]()
    while pending:
        current = pending.pop()
        if current.name in seen:
            continue
        seen.add(current.name)
        if current.operator in EXPANSIONS:
            chain.append(current.operator)
        blobs |= {item for item in current.constants if isinstance(item, BlobReference)}
        pending += [makers[name] for name in _names(current) if name in makers]
    return chain, blobs


@dataclass(frozen=True)
class Blob:
    """One blob of a weight file: its place, its content's SHA-256, and the functions that refer to it."""

    file: str
    offset: int
    dtype: ElementType
    bytes: int
    sha256: str
    functions: tuple[str, ...]


def blobs(package: Package) -> list[Blob]:
    """Every blob that any function refers to. Raises GateFailed when a record is broken."""
    functions: dict[tuple[str, int], set[str]] = defaultdict(set)
    references: dict[tuple[str, int], BlobReference] = {}
    for name, reference in _references(package):
        functions[reference.file, reference.offset].add(name)
        references[reference.file, reference.offset] = reference
    found = []
    for key in sorted(references):
        weights, reference = package.weight_file(references[key]), references[key]
        record = weights.checked_record(reference.offset, reference.type.dtype, reference.type.elements)
        digest = hashlib.sha256(weights.data(record)).hexdigest()
        found.append(Blob(*key, reference.type.dtype, record.bytes, digest, tuple(sorted(functions[key]))))
    return found


def _references(package: Package) -> Iterator[tuple[str, BlobReference]]:
    for function in package.program.functions.values():
        for operation in function.all_operations():
            for constant in operation.constants:
                if isinstance(constant, BlobReference):
                    yield function.name, constant


def duplicates(found: list[Blob]) -> list[tuple[Blob, ...]]:
    """Groups of blobs with the same content: all but one of each group are bytes that a package could do without."""
    groups: dict[tuple[ElementType, str], list[Blob]] = defaultdict(list)
    for blob in found:
        groups[blob.dtype, blob.sha256].append(blob)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def duplicate_bytes(found: list[Blob]) -> int:
    """Bytes stored more than once."""
    return sum(group[0].bytes * (len(group) - 1) for group in duplicates(found))
