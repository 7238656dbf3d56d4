"""Runs the package that lies in a program, by the reference interpreter, as ExecuTorch's runtime would have Core ML run it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from exporter.targets.coreml.driver import CoreMlDriver
from exporter.targets.coreml.host import HostLayout
from exporter.targets.coreml.interpreter.machine import Interpreter, Precision
from exporter.targets.coreml.names import HOST_FILE
from exporter.targets.executorch.coreml.names import PROGRAM_FILE
from exporter.targets.executorch.coreml.payload import extract


def open_driver(folder: Path) -> CoreMlDriver:
    """Opens an export with every result rounded to its type, as on a device."""
    return _open(folder, Precision.FP16)


def open_exact_driver(folder: Path) -> CoreMlDriver:
    """Opens an export with nothing rounded to 16 bits."""
    return _open(folder, Precision.FP32)


def _open(folder: Path, precision: Precision) -> CoreMlDriver:
    layout = HostLayout.read(folder / HOST_FILE)
    with tempfile.TemporaryDirectory() as scratch:
        package = extract(folder / PROGRAM_FILE, Path(scratch))
        return CoreMlDriver(Interpreter.open(package, precision), layout)
