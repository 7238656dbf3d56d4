"""Typed reading of `config.json`: every fault names the field and its value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from exporter.decoder.spec import Activation, RotaryScaling, RotaryScalingKind, RotarySpec
from exporter.errors import CheckpointError
from exporter.registry import did_you_mean

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}


class Config:
    """`config.json` of a checkpoint folder."""

    def __init__(self, values: dict[str, Any], source: str = "config.json") -> None:
        self.values, self.source = values, source

    @staticmethod
    def read(path: Path) -> Config:
        """Raises CheckpointError when the file is missing or is no JSON object."""
        if not path.is_file():
            raise CheckpointError(f"{path}: not found", "pass a Hugging Face checkpoint folder with --model")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as fault:
            raise CheckpointError(f"{path}: not valid JSON ({fault})", "restore the file from the checkpoint") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: must hold a JSON object", "restore the file from the checkpoint")
        return Config(values, str(path))

    def fault(self, field: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {field}: {problem}", "correct the field or the checkpoint")

    def get(self, field: str, default: Any = None) -> Any:
        value = self.values.get(field)
        return default if value is None else value

    def integer(self, field: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fault(field, f"must be a whole number, not {value!r}")
        if value <= 0:
            raise self.fault(field, f"must be positive, not {value}")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        value = self.get(field, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fault(field, f"must be a number, not {value!r}")
        return float(value)

    def flag(self, field: str, default: bool) -> bool:
        value = self.get(field, default)
        if not isinstance(value, bool):
            raise self.fault(field, f"must be true or false, not {value!r}")
        return value

    def optional_integer(self, field: str) -> int | None:
        return None if self.get(field) is None else self.integer(field)

    def activation(self, field: str = "hidden_act") -> Activation:
        name = self.get(field, "silu")
        if name not in ACTIVATIONS:
            raise CheckpointError(
                f"{self.source}: {field}: unsupported activation {name!r}", did_you_mean(str(name), list(ACTIVATIONS))
            )
        return ACTIVATIONS[name]

    def rotary(self, head_dim: int) -> RotarySpec:
        """Reads `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before)."""
        parameters = self.get("rope_parameters") or self.get("rope_scaling") or {}
        if not isinstance(parameters, dict):
            raise self.fault("rope_parameters", "must be an object")
        theta = float(parameters.get("rope_theta") or self.get("rope_theta") or 10000.0)
        share = float(parameters.get("partial_rotary_factor") or self.get("partial_rotary_factor") or 1.0)
        return RotarySpec(int(head_dim * share), theta, self._rotary_scaling(parameters))

    def _rotary_scaling(self, parameters: dict[str, Any]) -> RotaryScaling | None:
        kind = parameters.get("rope_type") or parameters.get("type") or "default"
        if kind == "default":
            return None
        known = [entry.value for entry in RotaryScalingKind]
        if kind not in known:
            raise CheckpointError(f"{self.source}: unsupported rope_type {kind!r}", did_you_mean(str(kind), known))
        if "factor" not in parameters:
            raise self.fault("rope_parameters.factor", f"is required by rope_type {kind!r}")
        original = parameters.get("original_max_position_embeddings") or self.integer("max_position_embeddings")
        return RotaryScaling(
            RotaryScalingKind(kind),
            float(parameters["factor"]),
            int(original),
            float(parameters.get("low_freq_factor") or 1.0),
            float(parameters.get("high_freq_factor") or 4.0),
            float(parameters.get("beta_fast") or 32.0),
            float(parameters.get("beta_slow") or 1.0),
            parameters.get("attention_factor"),
        )
