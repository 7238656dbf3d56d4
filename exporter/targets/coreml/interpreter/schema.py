"""The protobuf classes of Core ML models, without the rest of coremltools.

`import coremltools` takes seconds, loads torch, and on Linux prints a dozen lines about libraries that only a Mac has. The generated
protobuf modules need none of that, so their folder is imported as a package of its own. protobuf keeps one set of classes per
process, so a later `import coremltools` gets the same ones.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

from exporter.errors import ToolchainMissing

ALIAS = "exporter_coreml_messages"


@cache
def model_messages() -> tuple[Any, Any]:
    """The modules Model_pb2 and MIL_pb2. Raises ToolchainMissing when coremltools is not installed."""
    found = importlib.util.find_spec("coremltools")
    if found is None or found.origin is None:
        raise ToolchainMissing("coremltools is not installed", "pip install 'slm-export[coreml]'")
    folder = Path(found.origin).parent / "proto"
    spec = importlib.util.spec_from_file_location(
        ALIAS, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ToolchainMissing(f"{folder}: not readable", "pip install --force-reinstall coremltools==9.0")
    package = importlib.util.module_from_spec(spec)
    sys.modules[ALIAS] = package
    spec.loader.exec_module(package)
    return package.Model_pb2, package.MIL_pb2
