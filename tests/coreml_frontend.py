"""coremltools as the tests use it: quiet, and able to trace under a numpy that is newer than it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

logging.getLogger("coremltools").setLevel(logging.ERROR)  # it warns of versions that it has not seen
ct = pytest.importorskip("coremltools", reason="the coreml extra is not installed")

from coremltools.converters.mil.frontend.torch import ops as torch_frontend  # noqa: E402
from coremltools.converters.mil.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import Function, Program, types  # noqa: E402
from coremltools.optimize import coreml as optimize  # noqa: E402

__all__ = ["Function", "Program", "accept_new_numpy", "ct", "mb", "optimize", "types"]


def accept_new_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """coremltools 9.0 casts an array of one element with int(), which numpy 2.4 refuses; `item()` does what it meant."""
    upstream = torch_frontend._cast

    def cast(context: Any, node: Any, dtype: Callable[..., Any], dtype_name: str) -> None:
        (variable,) = torch_frontend._get_inputs(context, node, expected=1)
        if variable.val is None or np.size(variable.val) != 1:
            upstream(context, node, dtype, dtype_name)
            return
        context.add(mb.const(val=dtype(np.asarray(variable.val).item()), name=node.name), node.name)

    monkeypatch.setattr(torch_frontend, "_cast", cast)
