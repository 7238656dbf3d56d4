"""Typed reading of `config.json`: every fault names the field and its value."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from exporter.decoder.spec import Activation
from exporter.errors import CheckpointError
from exporter.registry import did_you_mean

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "relu": Activation.RELU,
}


class Config:
    """`config.json` of a checkpoint folder."""

    def __init__(self, values: dict[str, Any], source: str = "config.json") -> None:
        self.values, self.source = values, source

    def named(self, names: dict[str, str]) -> Config:
        """The same config for a family that has its own names for some fields: usual name -> its own, which is then the one that
        faults speak of. A file that has the usual name alone keeps it."""
        own = {usual: name for usual, name in names.items() if name in self.values or usual not in self.values}
        return _NamedConfig(self.values, self.source, own)

    @staticmethod
    def read(path: Path) -> Config:
        """Raises CheckpointError when the file is missing or is no JSON object."""
        if not path.is_file():
            raise CheckpointError(f"{path}: not found", "pass a Hugging Face checkpoint folder with --model")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as fault:
            raise CheckpointError(f"{path}: not valid JSON ({fault})", "restore the file from the checkpoint") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: must hold a JSON object", "restore the file from the checkpoint")
        return Config(values, str(path))

    def defaulting(self, **values: Any) -> Config:
        """The same config with values for fields that it lacks."""
        return Config(values | self.values, self.source)

    def replacing(self, **values: Any) -> Config:
        """The same config with these values, whatever it says."""
        return Config(self.values | values, self.source)

    def fault(self, field: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {field}: {problem}", "correct the field or the checkpoint")

    def get(self, field: str, default: Any = None) -> Any:
        value = self.values.get(field)
        return default if value is None else value

    def integer(self, field: str, default: int | None = None, least: int = 1) -> int:
        """A whole number, positive unless `least` allows others."""
        value = self.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fault(field, f"must be a whole number, not {value!r}")
        if value < least:
            raise self.fault(field, f"must be {least} or more, not {value}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(field, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            raise self.fault(field, f"must be a number, not {value!r}")  # NaN is not below any limit
        return float(value)

    def positive(self, field: str, default: float | None = None) -> float:
        """A finite number above zero."""
        value = self.number(field, default)
        if value <= 0:
            raise self.fault(field, f"must be positive, not {value:g}")
        return value

    def text(self, field: str, default: str | None = None) -> str:
        value = self.get(field, default)
        if not isinstance(value, str):
            raise self.fault(field, f"must be text, not {value!r}")
        return value

    def section(self, field: str) -> Config:
        """The object below `field`, empty when there is none; its faults name the file and `field`."""
        values = self.get(field, {})
        if not isinstance(values, dict):
            raise self.fault(field, f"must be an object, not {values!r}")
        return Config(values, f"{self.source}: {field}")

    def flag(self, field: str, default: bool) -> bool:
        value = self.get(field, default)
        if not isinstance(value, bool):
            raise self.fault(field, f"must be true or false, not {value!r}")
        return value

    def optional_integer(self, field: str) -> int | None:
        return None if self.get(field) is None else self.integer(field)

    def cap(self, field: str, default: float | None = None) -> float | None:
        """A positive number; null means none, absence the default."""
        if field in self.values and self.get(field) is None:
            return None
        return None if self.get(field, default) is None else self.positive(field, default)

    def activation(self, field: str = "hidden_act", default: str = "silu") -> Activation:
        name = self.text(field, default)
        if name not in ACTIVATIONS:
            raise CheckpointError(
                f"{self.source}: {field}: unsupported activation {name!r}", did_you_mean(name, list(ACTIVATIONS))
            )
        return ACTIVATIONS[name]

    def refuse(self, field: str, *neutral: Any) -> None:
        """Raises CheckpointError when a field that is not supported has a value that matters."""
        if self.get(field) is not None and self.get(field) not in neutral:
            raise self.fault(field, f"{self.get(field)!r} is not supported")


class _NamedConfig(Config):
    """Reads usual field names from a family's own."""

    def __init__(self, values: dict[str, Any], source: str, own: dict[str, str]) -> None:
        super().__init__(values, source)
        self._own = own

    def get(self, field: str, default: Any = None) -> Any:
        return super().get(self._own.get(field, field), default)

    def fault(self, field: str, problem: str) -> CheckpointError:
        return super().fault(self._own.get(field, field), problem)
