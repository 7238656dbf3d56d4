"""The interpreter's operators, one file per topic."""

from __future__ import annotations

import importlib
import pkgutil


def load_operators() -> None:
    """Imports every topic, so that each registers its operators. Looking for targets imports this package, but not torch."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
