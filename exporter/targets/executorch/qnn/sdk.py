"""The Qualcomm libraries, from the onnxruntime-qnn wheel: laid out as ExecuTorch expects and loaded in the one order that works.

ExecuTorch wants a folder named by QNN_SDK_ROOT with `lib/x86_64-linux-clang/`; without the variable it would download an SDK of
several gigabytes. The libraries must be loaded after torch, torchao and executorch: before them the process aborts.
"""

from __future__ import annotations

import ast
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
from contextlib import suppress
from pathlib import Path

from exporter.errors import ToolchainMissing
from exporter.stage_cache import cache_root

REQUIRED_LIBRARIES = ("libQnnSystem.so", "libQnnHtp.so")
QNN_WHEEL_VERSION = "2.5.0"
"""ExecuTorch 1.5.1 works with this release alone: 2.3, 2.6 and 2.7 fail with `unknown custom config socModel`."""


def library_folder() -> Path:
    """The folder of the wheel's libraries. Raises ToolchainMissing naming what to install."""
    install = f"pip install 'slm-export[qnn]' (onnxruntime-qnn=={QNN_WHEEL_VERSION})"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise ToolchainMissing(
            f"the Qualcomm compiler runs on x86-64 Linux, not on {platform.system()} {platform.machine()}",
            "export on such a machine or in CI",
        )
    if importlib.util.find_spec("executorch") is None:
        raise ToolchainMissing("executorch is not installed", "pip install 'slm-export[qnn]'")
    found = importlib.util.find_spec("onnxruntime_qnn")
    if found is None or found.origin is None:
        raise ToolchainMissing("the Qualcomm libraries are not installed", install)
    version = importlib.metadata.version("onnxruntime-qnn")
    if version != QNN_WHEEL_VERSION:
        raise ToolchainMissing(f"onnxruntime-qnn {version} does not work with ExecuTorch 1.5.1", install)
    folder = Path(found.origin).parent
    for name in REQUIRED_LIBRARIES:
        if not (folder / name).is_file():
            raise ToolchainMissing(f"{folder / name} is missing", install)
    return folder


def prepare_environment() -> Path:
    """Points QNN_SDK_ROOT at the wheel's libraries unless a real SDK is already named. Call before importing executorch."""
    named = os.environ.get("QNN_SDK_ROOT")
    if named:
        return Path(named) / "lib" / "x86_64-linux-clang"
    libraries = library_folder()
    root = cache_root() / "qnn-sdk" / hashlib.sha256(str(libraries).encode()).hexdigest()[:16]
    (root / "lib").mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (root / "lib" / "x86_64-linux-clang").symlink_to(libraries)
    os.environ["QNN_SDK_ROOT"] = str(root)
    return libraries


def load_libraries() -> None:
    """Loads the compiler and simulator into this process."""
    folder = prepare_environment()
    import executorch.runtime  # noqa: F401  the libraries abort when loaded before it

    for name in REQUIRED_LIBRARIES:
        ctypes.CDLL(str(folder / name))


def chipset_names() -> list[str]:
    """Every chipset that the installed ExecuTorch lists, or an empty list without ExecuTorch.

    Read from its source, because importing ExecuTorch takes seconds and a plan must not.
    """
    found = importlib.util.find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        return []
    for location in found.submodule_search_locations:
        source = Path(location) / "backends/qualcomm/serialization/qc_schema.py"
        if source.is_file():
            return _enum_members(source, "QcomChipset")
    return []


def _enum_members(source: Path, name: str) -> list[str]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    chosen = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    assigned = [item for node in chosen for item in node.body if isinstance(item, ast.Assign | ast.AnnAssign)]
    targets = [item.target if isinstance(item, ast.AnnAssign) else item.targets[0] for item in assigned]
    return [target.id for target in targets if isinstance(target, ast.Name) and target.id != "UNKNOWN_SM"]
