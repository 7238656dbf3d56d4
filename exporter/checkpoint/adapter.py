"""PEFT LoRA adapters (arXiv 2106.09685), merged into the weights as they are read: W + scaling * B A."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from exporter.checkpoint.config import Config
from exporter.errors import CheckpointError

_PREFIX = "base_model.model."
_LORA_KEY = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight$")


class LoraAdapter:
    """Low-rank updates by checkpoint tensor name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._settings = self._read_settings()
        self._alpha_pattern = self._read_alpha_pattern()
        self._sides: dict[str, dict[str, torch.Tensor]] = {}
        self._replacements: dict[str, torch.Tensor] = {}
        self._read_tensors()

    def apply(self, name: str, weight: torch.Tensor, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """These rows of a weight, merged: `weight` itself when the adapter does not touch tensor `name`."""
        if name in self._replacements:
            return self._replacements[name][rows].float()
        if name not in self._sides:
            return weight
        down, up = self._sides[name]["A"].float(), self._sides[name]["B"][rows].float()
        return weight + self._scaling(name, down.shape[0]) * (up @ down)

    def check_shapes(self, known: dict[str, tuple[int, ...]]) -> None:
        """Raises CheckpointError when the adapter changes a tensor that the base lacks or has in another shape."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self._replacements.items()}
        for name, sides in self._sides.items():
            shapes.setdefault(name, (sides["B"].shape[0], sides["A"].shape[1]))
        for name, shape in sorted(shapes.items()):
            if name not in known:
                problem = f"changes {name}, which the decoder does not use"
            elif shape != known[name]:
                problem = f"for {name} has shape {shape}, the weight {known[name]}"
            else:
                continue
            raise CheckpointError(
                f"{self.folder}: adapter {problem}", "use the adapter with the base model it was trained on"
            )

    def _scaling(self, name: str, rank: int) -> float:
        module = name.removesuffix(".weight")
        matching = (alpha for pattern, alpha in self._alpha_pattern.items() if pattern.match(module))
        alpha = next(matching, self._settings.number("lora_alpha"))
        return alpha / (math.sqrt(rank) if self._settings.flag("use_rslora", False) else rank)

    def _read_alpha_pattern(self) -> dict[re.Pattern[str], float]:
        """Alpha by pattern of module names, compiled as PEFT does; the first that matches wins there and here."""
        section, found = self._settings.section("alpha_pattern"), {}
        for pattern in section.values:
            try:
                compiled = re.compile(rf"(.*\.)?({pattern})$")
            except re.error as fault:
                raise section.fault(pattern, f"is no regular expression ({fault})") from None
            found[compiled] = section.number(pattern)
        return found

    def _read_settings(self) -> Config:
        path = self.folder / "adapter_config.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: not found", "pass a PEFT adapter folder with --adapter")
        settings = Config.read(path)
        if settings.get("peft_type") != "LORA":
            raise CheckpointError(
                f"{path}: peft_type {settings.get('peft_type')!r} is not LORA", "merge it with PEFT first"
            )
        for unsupported in ("use_dora", "fan_in_fan_out"):
            if settings.get(unsupported):
                raise CheckpointError(f"{path}: {unsupported} is not supported", "merge it with PEFT first")
        if settings.get("bias", "none") != "none":
            bias = settings.get("bias")
            raise CheckpointError(f"{path}: bias={bias!r} is not supported", "merge it with PEFT first")
        settings.number("lora_alpha")
        settings.flag("use_rslora", False)
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
            _check_sides(path, name, sides)


def _check_sides(path: Path, name: str, sides: dict[str, torch.Tensor]) -> None:
    """A is [r, in] and B is [out, r]. Raises CheckpointError naming what is not so."""
    if set(sides) != {"A", "B"}:
        raise CheckpointError(f"{path}: {name} lacks lora_{'B' if 'A' in sides else 'A'}", "copy the file again")
    down, up = tuple(sides["A"].shape), tuple(sides["B"].shape)
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not down[0]:
        raise CheckpointError(
            f"{path}: {name} has lora_A of shape {down} and lora_B of shape {up}, not [rank, in] and [out, rank]",
            "copy the file again, or save the adapter anew with PEFT",
        )
