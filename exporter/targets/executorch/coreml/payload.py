"""What the delegate holds: a folder with the package and a description, flattened by ExecuTorch's own code. For child processes.

The description (`metadata.json`) names the inputs and outputs in the order of the method's arguments, and identifies the model: an
app's runtime compiles a package once and finds it again by that name, so the name follows from the content.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from executorch.backends.apple.coreml import executorchcoreml

from exporter.errors import GateFailed
from exporter.targets.coreml.interpreter.package import Package
from exporter.targets.coreml.names import PACKAGE, PACKAGE_FILES
from exporter.targets.executorch.coreml.names import BACKEND, INPUTS, METADATA_FILE, OUTPUTS
from exporter.targets.executorch.delegate_program import read_payloads

FOLDER = "lowered_module"
"""The payload has the folder's name in it, as ExecuTorch's own exporter calls it."""


def flatten(package: Path) -> bytes:
    """A package as the payload of the delegate, the same bytes for the same package."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / FOLDER
        shutil.copytree(package, folder / PACKAGE)
        description = {"inputNames": arguments_of(package), "outputNames": OUTPUTS, "identifier": _identifier(package)}
        (folder / METADATA_FILE).write_text(json.dumps(description), encoding="utf-8")
        return bytes(executorchcoreml.flatten_directory_contents(str(folder)))


def arguments_of(package: Path) -> tuple[str, ...]:
    """Inputs of the package's only function in the order of the method's arguments."""
    (function,) = Package.open(package).program.functions.values()
    return tuple(name for name in INPUTS if name in function.inputs)


def extract(program: Path, folder: Path) -> Path:
    """Puts the package that lies in a program into `folder`, and returns its path there.

    Raises GateFailed when the program is no program, does not hold exactly one Core ML delegate, or that holds no package.
    """
    payloads = read_payloads(program.read_bytes())
    found = [payload.backend for payload in payloads]
    if found != [BACKEND]:
        problem = f"holds {', '.join(found) or 'no delegate'}, not one {BACKEND}"
        raise GateFailed(f"{program}: {problem}", "pass a program with a single Core ML delegate")
    unflattened = _unflatten(payloads[0].binary, folder)
    packages = sorted(folder.glob(f"*/{PACKAGE}"))
    if not unflattened or len(packages) != 1:
        raise GateFailed(f"{program}: the delegate's payload is damaged", "copy the file again, or export it again")
    return packages[0]


def _unflatten(payload: bytes, folder: Path) -> bool:
    try:
        return bool(executorchcoreml.unflatten_directory_contents(payload, str(folder)))
    except RuntimeError:
        return False


def _identifier(package: Path) -> str:
    digest = hashlib.sha256()
    for name in PACKAGE_FILES:
        with (package / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"executorch_{digest.hexdigest()[:32]}"
