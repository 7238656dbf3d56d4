"""Typed reading of `config.json`: every fault names the field and its value."""

from __future__ import annotations

import json
import sys
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
        except (ValueError, RecursionError) as fault:
            raise CheckpointError(f"{path}: not valid JSON ({fault})", "restore the file from the checkpoint") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: must hold a JSON object", "restore the file from the checkpoint")
        return Config(values, str(path))

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

    def activation(self, field: str = "hidden_act") -> Activation:
        name = self.text(field, "silu")
        if name not in ACTIVATIONS:
            raise CheckpointError(
                f"{self.source}: {field}: unsupported activation {name!r}", did_you_mean(name, list(ACTIVATIONS))
            )
        return ACTIVATIONS[name]

    def rotary(self, head_dim: int) -> RotarySpec:
        """Reads `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before)."""
        current, former = self.section("rope_parameters"), self.section("rope_scaling")
        if current.values and former.values:
            raise self.fault(
                "rope_scaling", "stands beside rope_parameters; keep the one that the model was trained with"
            )
        parameters = current if current.values else former
        theta = parameters.positive("rope_theta", self.positive("rope_theta", 10000.0))
        share = parameters.number("partial_rotary_factor", self.number("partial_rotary_factor", 1.0))
        if share != 1:
            raise self.fault("partial_rotary_factor", f"{share:g}: this family rotates whole heads")
        return RotarySpec(head_dim, theta, self._rotary_scaling(parameters))

    def _rotary_scaling(self, parameters: Config) -> RotaryScaling | None:
        kind = parameters.text("rope_type", parameters.text("type", "default"))
        if kind == "default":
            return None
        known = [entry.value for entry in RotaryScalingKind]
        if kind not in known:
            raise CheckpointError(f"{parameters.source}: unsupported rope_type {kind!r}", did_you_mean(kind, known))
        if parameters.get("factor") is None:
            raise parameters.fault("factor", f"is required by rope_type {kind!r}")
        for unsupported, neutral in (("truncate", True), ("mscale", None), ("mscale_all_dim", None)):
            if parameters.get(unsupported, neutral) != neutral:
                raise parameters.fault(unsupported, "is not supported")
        sharpening = parameters.get("attention_factor")
        original = self.integer("original_max_position_embeddings", self.integer("max_position_embeddings"))
        if self.get("original_max_position_embeddings") is None:
            original = parameters.integer("original_max_position_embeddings", original)
        return RotaryScaling(
            RotaryScalingKind(kind),
            parameters.positive("factor"),
            original,
            parameters.positive("low_freq_factor", 1.0),
            parameters.positive("high_freq_factor", 4.0),
            parameters.positive("beta_fast", 32.0),
            parameters.positive("beta_slow", 1.0),
            None if sharpening is None else parameters.positive("attention_factor"),
        )
