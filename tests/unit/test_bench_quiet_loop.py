"""Between the first and the last reading of its clock the loop of the C++ runners asks nothing of the system, and allocates nothing."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from device_tests import harness

RUNNERS = Path(harness.__file__).parent / "runners"
NO_FILTER = 77


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no C++ compiler, or no Linux")
    program = tmp_path_factory.mktemp("quiet") / "check"
    source = Path(__file__).with_name("quiet_loop_check.cpp")
    subprocess.run(
        [compiler, "-std=c++17", "-O1", f"-I{RUNNERS}", str(source), "-o", str(program), "-pthread"], check=True
    )
    if subprocess.run([str(program), ""]).returncode == NO_FILTER:
        pytest.skip("this system lets no process filter its own system calls")
    return program


@pytest.mark.parametrize(("engine", "status"), [("", 0), ("write", -signal.SIGSYS), ("allocate", 3)])
def test_the_loop_is_as_quiet_as_its_engine(check: Path, engine: str, status: int) -> None:
    assert subprocess.run([str(check), engine]).returncode == status
