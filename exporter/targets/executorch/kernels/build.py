"""Builds the operators' library for this machine when it is first needed, with whatever C++ compiler there is.

The library is kept in the stage cache's root under the hash of its sources, the compiler and ExecuTorch's version. `CMakeLists.txt`
beside this file builds the same for other machines.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from exporter.errors import ToolchainMissing
from exporter.folder import OutputFolder
from exporter.stage_cache import cache_root

SOURCES = Path(__file__).resolve().parent
LIBRARY = "libslm_operators.so"
COMPILERS = ("c++", "g++", "clang++")
COMMON = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp-simd",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",  # every path of attention rounds alike
)
FUSED = {"linear.cpp": ("-ffp-contract=fast",)}
X86_FLAGS = {
    **FUSED,
    "path_avx2.cpp": ("-mavx2", "-mfma"),
    "path_avx512.cpp": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni"),
}
DOT_PRODUCTS = ("-march=armv8.2-a+dotprod",)
ARM_FLAGS = {**FUSED, "path_neon.cpp": DOT_PRODUCTS, "rounded.cpp": DOT_PRODUCTS}
CORE = (
    "attention.cpp",
    "codec.cpp",
    "experts.cpp",
    "linear.cpp",
    "path_avx2.cpp",
    "path_avx512.cpp",
    "path_neon.cpp",
    "path_portable.cpp",
    "recurrence.cpp",
    "rounded.cpp",
    "standalone.cpp",
)
OPERATORS = "operators.cpp"
FALLBACK = "--set executorch.operators=plain needs no compiler: ExecuTorch's own operators alone, several times slower"


def find_compiler() -> str | None:
    """Path of a C++ compiler: `$CXX`, or the first of the usual names."""
    named = os.environ.get("CXX")
    return next((found for name in ((named,) if named else COMPILERS) if (found := shutil.which(name))), None)


def operators_library() -> Path:
    """The library for this machine, built if it is not there yet. Raises ToolchainMissing without a compiler."""
    compiler = find_compiler()
    if compiler is None:
        raise ToolchainMissing(
            "the attention operators need a C++ compiler, and none was found", f"install g++, or {FALLBACK}"
        )
    folder = cache_root() / "operators" / _key(compiler)
    if not (folder / LIBRARY).is_file():
        with OutputFolder(folder, force=True) as partial:
            _build(compiler, partial)
    return folder / LIBRARY


def _key(compiler: str) -> str:
    digest = hashlib.sha256(importlib.metadata.version("executorch").encode() + compiler.encode())
    digest.update(platform.machine().encode() + Path(__file__).read_bytes())
    for source in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:24]


def _build(compiler: str, folder: Path) -> None:
    runtime = _runtime_folder()
    include = (f"-I{runtime / 'include'}", f"-I{runtime / 'include/executorch/runtime/core/portable_type/c10'}")
    macros = ("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL")
    special = X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else ARM_FLAGS

    def compiled(name: str) -> str:
        target = folder / f"{name}.o"
        extra = (*include, *macros) if name == OPERATORS else special.get(name, ())
        _run([compiler, *COMMON, *extra, "-c", str(SOURCES / name), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, (*CORE, OPERATORS)))
    library = runtime / "lib"
    link = (f"-L{library}", "-lexecutorch", "-lexecutorch_threadpool", f"-Wl,-rpath,{library}")
    _run([compiler, "-shared", "-o", str(folder / LIBRARY), *objects, *link])
    for item in objects:
        Path(item).unlink()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-200:])
        raise ToolchainMissing(f"{command[0]} could not build the attention operators: {first}", FALLBACK)


def _runtime_folder() -> Path:
    """Where the installed ExecuTorch keeps its headers and libraries."""
    found = importlib.util.find_spec("executorch.runtime")
    if found is None or found.origin is None:
        raise ToolchainMissing("executorch is not installed; pip install 'slm-export[executorch]'")
    return Path(found.origin).parent.parent
