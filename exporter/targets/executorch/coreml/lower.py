"""From a quantized checkpoint to `model.pte`: one method, one delegate, and in it the package that `targets/coreml` builds.

ExecuTorch's runtime makes one state for each method that it loads, so methods `prefill` and `decode` would have a cache each. Hence there
is one method for chunks; a token is decoded by sending its chunk again.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from executorch.exir.scalar_type import ScalarType

from exporter.child import Emit
from exporter.targets.base import Delegation
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.interpreter.signature import Signature
from exporter.targets.coreml.interpreter.types import ElementType
from exporter.targets.coreml.lower import host_layout, load_for, outcome, save_decoder
from exporter.targets.coreml.names import HOST_FILE
from exporter.targets.coreml.profile import Profile
from exporter.targets.executorch.coreml.names import BACKEND, METHOD, OUTPUTS, PROGRAM_FILE
from exporter.targets.executorch.coreml.payload import arguments_of, extract, flatten
from exporter.targets.executorch.delegate_program import (
    DelegatedMethod,
    DelegatePayload,
    MethodCalls,
    TensorType,
    delegate_program,
    read_calls,
)

MAIN = "main"
"""The function of a package that has one."""

SCALAR_TYPES = {
    ElementType.INT32: ScalarType.INT,
    ElementType.FP16: ScalarType.HALF,
    ElementType.FP32: ScalarType.FLOAT,
}
COMPUTE_UNITS = {Profile.GPU: b"cpu_and_gpu", Profile.NEURAL_ENGINE: b"cpu_and_ne"}


def lower_in_child(arguments: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Entry point of the child process; see `ExecutorchCoreMlTarget.lower` for the arguments.

    Raises GateFailed when the package that the written program holds is not the decoder.
    """
    folder, profile = Path(arguments["artifact"]), Profile(arguments["profile"])
    decoder = load_for(profile, Path(arguments["quantized"]))
    program = folder / PROGRAM_FILE
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        package = save_decoder(decoder, profile, {MAIN: decoder.chunk}, Path(scratch))
        method = method_of(package)
        payload = DelegatePayload(BACKEND, flatten(package), (("compute_units", COMPUTE_UNITS[profile]),))
    program.write_bytes(delegate_program([method], [payload]))
    host_layout(decoder).write(folder / HOST_FILE)
    with tempfile.TemporaryDirectory() as scratch:
        found = outcome(decoder, extract(program, Path(scratch)))
    calls = read_calls(program.read_bytes())
    return asdict(replace(found, shipped_files=(HOST_FILE, PROGRAM_FILE), delegation=_delegation(calls)))


def method_of(package: Path) -> DelegatedMethod:
    """The method that takes and gives what the package's function takes and gives, as the saved package declares it."""
    signature = Signature.of(Package.open(package).program.functions[MAIN])
    inputs, outputs = (
        tuple(TensorType(SCALAR_TYPES[kind.dtype], tuple(size or 0 for size in kind.shape)) for kind in kinds)
        for kinds in (
            (signature.inputs[name] for name in arguments_of(package)),
            (signature.outputs[name] for name in OUTPUTS),
        )
    )
    return DelegatedMethod(METHOD, inputs, outputs)


def _delegation(calls: list[MethodCalls]) -> Delegation:
    outside = tuple(name for call in calls for name in call.cpu_operators)
    delegates = {call.method: call.delegate_calls for call in calls}
    return Delegation(sum(delegates.values()) / (sum(delegates.values()) + len(outside)), delegates, outside)
