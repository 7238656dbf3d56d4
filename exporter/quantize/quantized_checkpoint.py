"""The quantized checkpoint on disk: one safetensors file of codes, scales and KV constants, one JSON file that explains it.

All targets of a run read the same one, and a re-run resumes from it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from exporter.decoder.cache import LayerCache
from exporter.decoder.spec import DecoderSpec
from exporter.decoder.torch_ops import FLOAT_KV, TorchOps
from exporter.decoder.weights import DecoderWeights
from exporter.errors import CheckpointError, UsageError
from exporter.quantize.formats import KvFormat, ScaleFormat, WeightFormat
from exporter.quantize.int4 import QuantizedMatrix
from exporter.quantize.kv_codec import ChannelConstants, LayerKvConstants

TENSORS_FILE = "quantized.safetensors"
DESCRIPTION_FILE = "quantized.json"
FORMAT_VERSION = 1
MATRIX_PARTS = ("codes", "scales", "channel_scales", "multipliers", "palettes")


@dataclass(frozen=True)
class QuantizedDecoder:
    """Everything that a target builds from, and everything that the oracle runs."""

    spec: DecoderSpec
    weights: DecoderWeights
    layout: tuple[LayerCache, ...]
    kv_format: KvFormat
    kv_constants: tuple[LayerKvConstants, ...]
    chunk: int
    context: int

    @staticmethod
    def without_cache(spec: DecoderSpec, weights: DecoderWeights) -> QuantizedDecoder:
        """Weights that wait for a target to say how it caches."""
        return QuantizedDecoder(spec, weights, (), FLOAT_KV, (), 0, 0)

    def oracle(self) -> TorchOps:
        """The eager interpreter of exactly these numbers."""
        return TorchOps(self.spec, self.weights, self.layout, self.kv_format, self.kv_constants)

    def exact_oracle(self) -> TorchOps:
        """The same where nothing is rounded to 16 bits."""
        return replace(self, kv_format=self.kv_format.without_half_rounding()).oracle()


def save_quantized(decoder: QuantizedDecoder, folder: Path) -> None:
    """Writes both files into an existing folder; equal decoders give equal bytes."""
    tensors: dict[str, torch.Tensor] = dict(decoder.weights.vectors)
    matrices: dict[str, Any] = {}
    for name, matrix in decoder.weights.matrices.items():
        tensors[f"{name}.codes"] = matrix.packed
        if matrix.palettes is not None:
            tensors[f"{name}.palettes"] = matrix.palettes.half()
        elif matrix.format.scale_format is ScaleFormat.LPBQ:
            assert matrix.channel_scales is not None and matrix.multipliers is not None
            tensors[f"{name}.channel_scales"], tensors[f"{name}.multipliers"] = (
                matrix.channel_scales,
                matrix.multipliers,
            )
        else:
            half = torch.float16 if matrix.format.scale_format is ScaleFormat.FP16 else torch.bfloat16
            tensors[f"{name}.scales"] = matrix.scales.to(half)
        matrices[name] = {"in_features": matrix.in_features, **asdict(matrix.format)}
    for index, constants in enumerate(decoder.kv_constants):
        for side, channel in (("key", constants.key), ("value", constants.value)):
            tensors[f"kv.{index}.{side}.center"], tensors[f"kv.{index}.{side}.balance"] = (
                channel.center,
                channel.balance,
            )
    description = {
        "format_version": FORMAT_VERSION,
        "spec": TypeAdapter(DecoderSpec).dump_python(decoder.spec, mode="json"),
        "matrices": matrices,
        "layout": [asdict(layer) for layer in decoder.layout],
        "kv_format": TypeAdapter(KvFormat).dump_python(decoder.kv_format, mode="json"),
        "kv_static": [
            {"key": [entry.key.scale, entry.key.zero], "value": [entry.value.scale, entry.value.zero]}
            for entry in decoder.kv_constants
        ],
        "chunk": decoder.chunk,
        "context": decoder.context,
    }
    try:
        save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, folder / TENSORS_FILE)
    except SafetensorError as fault:
        raise UsageError(
            f"cannot write {folder / TENSORS_FILE} ({fault})", "free space, or set SLM_EXPORT_CACHE"
        ) from None
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1, sort_keys=True), encoding="utf-8")


def load_quantized(folder: Path) -> QuantizedDecoder:
    """Reads a folder written by `save_quantized`. Raises CheckpointError when it is damaged."""
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        with safe_open(folder / TENSORS_FILE, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}
        if description["format_version"] != FORMAT_VERSION:
            raise KeyError(f"format_version {description['format_version']}")
        return _assemble(description, tensors)
    except (OSError, SafetensorError, json.JSONDecodeError, UnicodeDecodeError, KeyError, ValidationError) as fault:
        raise CheckpointError(f"{folder}: not a readable quantized checkpoint ({fault})", "export again") from None


def _assemble(description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> QuantizedDecoder:
    matrices = {name: _matrix(name, entry, tensors) for name, entry in description["matrices"].items()}
    taken = {f"{name}.{part}" for name in matrices for part in MATRIX_PARTS}
    vectors = {name: value for name, value in tensors.items() if name not in taken and not name.startswith("kv.")}
    constants = []
    for index, static in enumerate(description["kv_static"]):
        sides = {
            side: ChannelConstants(
                tensors[f"kv.{index}.{side}.center"],
                tensors[f"kv.{index}.{side}.balance"],
                float(static[side][0]),
                int(static[side][1]),
            )
            for side in ("key", "value")
        }
        constants.append(LayerKvConstants(sides["key"], sides["value"]))
    return QuantizedDecoder(
        TypeAdapter(DecoderSpec).validate_python(description["spec"]),
        DecoderWeights(matrices, vectors),
        tuple(LayerCache(**layer) for layer in description["layout"]),
        TypeAdapter(KvFormat).validate_python(description["kv_format"]),
        tuple(constants),
        int(description["chunk"]),
        int(description["context"]),
    )


def _matrix(name: str, entry: dict[str, Any], tensors: dict[str, torch.Tensor]) -> QuantizedMatrix:
    weight_format = WeightFormat(
        int(entry["bits"]), int(entry["group_size"]), ScaleFormat(entry["scale_format"]), int(entry["palette_rows"])
    )
    packed, columns = tensors[f"{name}.codes"], int(entry["in_features"])
    if weight_format.palette_rows:
        no_scales = torch.empty(packed.shape[0], 0)
        palettes = tensors[f"{name}.palettes"].float()
        return QuantizedMatrix(packed, no_scales, columns, weight_format, palettes=palettes)
    if weight_format.scale_format is ScaleFormat.LPBQ:
        channel, multipliers = tensors[f"{name}.channel_scales"], tensors[f"{name}.multipliers"]
        return QuantizedMatrix(
            packed, channel[:, None] * multipliers.float(), columns, weight_format, channel, multipliers
        )
    return QuantizedMatrix(packed, tensors[f"{name}.scales"].float(), columns, weight_format)
