"""A finished program as an .mlpackage, byte for byte the same every time.

`coremltools.convert` would run about ninety graph passes over each function, and `save_multifunction` would read the saved packages and
export them once more. Here all functions are one program from the start, equal constants have equal identities, so each is written once,
and no pass runs, deliberately:

* folding, fusing and deduplication (const_elimination, fuse_*, const_deduplication, remove_redundant_ops) hash or compute over every
  constant, which is where the time and the memory of a conversion go, and find nothing: the graph is built in its final form, and Core
  ML's own compiler fuses again. remove_redundant_ops also merges two reads of one state around a write, and then the second one sees
  the old content;
* add_fp16_cast would choose the type of every value anew; the types are the ones that were verified;
* dead_code_elimination, dedup_op_and_var_names, sanitize_name_strings: nothing is built that is not used, and names are fresh
  identifiers; `slm-export verify` runs what was saved.

What the converter checks about a program is checked here too.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from coremltools.converters.mil.backend.mil.load import load
from coremltools.converters.mil.mil import Program

from exporter.targets.coreml.names import MODEL_IN_PACKAGE, WEIGHTS_IN_PACKAGE

SPECIFICATION_VERSION = 9
"""iOS 18 and macOS 15: states, several functions, 4-bit constants."""

IDENTITY = uuid.UUID("6f0c2a3e-3c0e-5f0e-9a55-51a6b2c4d7e1")
"""Namespace of the identifiers in a package's manifest, which need only differ from each other."""


def save_package(program: Program, default_function: str, metadata: dict[str, str], path: Path) -> None:
    """Writes a new folder `path`. `metadata` is what an app reads from `MLModel.modelDescription.metadata`."""
    model_file, weights_file = path / MODEL_IN_PACKAGE, path / WEIGHTS_IN_PACKAGE
    weights_file.parent.mkdir(parents=True)
    program.default_function_name = default_function
    program.export_as_multifunction = len(program.functions) > 1  # else the package is as one of a single model
    program._check_early_error_out_for_invalid_program()
    model = load(program, str(weights_file.parent), specification_version=SPECIFICATION_VERSION)
    for name, text in sorted(metadata.items()):
        model.description.metadata.userDefined[name] = text
    model_file.write_bytes(model.SerializeToString(deterministic=True))
    (path / "Manifest.json").write_text(json.dumps(_manifest(), indent=4, sort_keys=True) + "\n", encoding="utf-8")


def _manifest() -> dict[str, object]:
    """The table of contents that every .mlpackage has."""
    entries = {
        "model.mlmodel": ("com.apple.CoreML/model.mlmodel", "CoreML Model Specification"),
        "weights": ("com.apple.CoreML/weights", "CoreML Model Weights"),
    }
    identifiers = {name: str(uuid.uuid5(IDENTITY, name)).upper() for name in entries}
    return {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[name]: {"author": "com.apple.CoreML", "description": text, "name": name, "path": place}
            for name, (place, text) in entries.items()
        },
        "rootModelIdentifier": identifiers["model.mlmodel"],
    }
