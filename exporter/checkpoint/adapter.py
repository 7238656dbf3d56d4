"""PEFT LoRA adapters (arXiv 2106.09685), merged into the weights as they are read: W + scaling * B A."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from exporter.errors import CheckpointError

_PREFIX = "base_model.model."
_LORA_KEY = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")


class LoraAdapter:
    """Low-rank updates by checkpoint tensor name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._settings = self._read_settings()
        self._sides: dict[str, dict[str, torch.Tensor]] = {}
        self._replacements: dict[str, torch.Tensor] = {}
        self._read_tensors()
        self._used: set[str] = set()

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The merged weight: `weight` itself when the adapter does not touch tensor `name`."""
        if name in self._replacements:
            self._used.add(name)
            return self._replacements[name].float()
        if name not in self._sides:
            return weight
        self._used.add(name)
        down, up = self._sides[name]["A"].float(), self._sides[name]["B"].float()
        if (up.shape[0], down.shape[1]) != tuple(weight.shape):
            raise CheckpointError(
                f"{self.folder}: adapter for {name} has shape {(up.shape[0], down.shape[1])}, the weight {tuple(weight.shape)}",
                "use the adapter with the base model it was trained on",
            )
        return weight + self._scaling(name, down.shape[0]) * (up @ down)

    def check_names(self, known: set[str]) -> None:
        """Raises CheckpointError when the adapter changes a tensor that the base model does not have."""
        unknown = sorted((set(self._sides) | set(self._replacements)) - known)
        if unknown:
            raise CheckpointError(
                f"{self.folder}: adapter changes {unknown[0]}, which the decoder does not use",
                "use the adapter with the base model it was trained on",
            )

    def _scaling(self, name: str, rank: int) -> float:
        module = name.removesuffix(".weight")
        alpha = float(self._settings.get("lora_alpha", rank))
        for pattern, value in (self._settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(value)
        return alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)

    def _read_settings(self) -> dict:
        path = self.folder / "adapter_config.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: not found", "pass a PEFT adapter folder with --adapter") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as fault:
            raise CheckpointError(f"{path}: not valid JSON ({fault})", "copy the file again") from None
        if settings.get("peft_type") != "LORA":
            raise CheckpointError(
                f"{path}: peft_type {settings.get('peft_type')!r} is not LORA", "merge it with PEFT first"
            )
        for unsupported in ("use_dora", "fan_in_fan_out"):
            if settings.get(unsupported):
                raise CheckpointError(f"{path}: {unsupported} is not supported", "merge it with PEFT first")
        if settings.get("bias", "none") != "none":
            raise CheckpointError(f"{path}: bias={settings['bias']!r} is not supported", "merge it with PEFT first")
        return settings

    def _read_tensors(self) -> None:
        path = self.folder / "adapter_model.safetensors"
        if not path.is_file():
            raise CheckpointError(f"{path}: not found", "save the adapter with safetensors")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as fault:
            raise CheckpointError(f"{path}: not a readable safetensors file ({fault})", "copy the file again") from None
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{path}: {key} holds NaN or infinite values", "retrain or restore it")
            stripped = key.removeprefix(_PREFIX)
            match = _LORA_KEY.match(stripped)
            if match:
                self._sides.setdefault(f"{match['module']}.weight", {})[match["side"]] = tensor
            else:
                self._replacements[stripped.replace(".modules_to_save.default", "")] = tensor
        for name, sides in self._sides.items():
            if set(sides) != {"A", "B"}:
                raise CheckpointError(
                    f"{path}: {name} lacks lora_{'B' if 'A' in sides else 'A'}", "copy the file again"
                )
