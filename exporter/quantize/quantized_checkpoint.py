"""The quantized checkpoint on disk: codes and scales of the weights, which all targets of one run share, and beside them how one
target caches keys and values. Each half is a safetensors file of numbers and a JSON file that explains it. A re-run resumes from it.
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

WEIGHTS_FILE, WEIGHTS_DESCRIPTION = "quantized.safetensors", "quantized.json"
CACHE_FILE, CACHE_DESCRIPTION = "kv_cache.safetensors", "kv_cache.json"
FORMAT_VERSION = 2
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
    """Writes weights and cache into an existing folder; equal decoders give equal bytes."""
    save_weights(decoder.spec, decoder.weights, folder)
    save_cache(decoder, folder)


def save_weights(spec: DecoderSpec, weights: DecoderWeights, folder: Path) -> None:
    """Writes the half that all targets share."""
    tensors: dict[str, torch.Tensor] = dict(weights.vectors)
    matrices: dict[str, Any] = {}
    for name, matrix in weights.matrices.items():
        tensors[f"{name}.codes"] = matrix.packed
        if matrix.palettes is not None:
            tensors[f"{name}.palettes"] = matrix.palettes.half()
        elif matrix.format.scale_format is ScaleFormat.LPBQ:
            assert matrix.channel_scales is not None and matrix.multipliers is not None
            tensors[f"{name}.channel_scales"] = matrix.channel_scales
            tensors[f"{name}.multipliers"] = matrix.multipliers
        else:
            half = torch.float16 if matrix.format.scale_format is ScaleFormat.FP16 else torch.bfloat16
            tensors[f"{name}.scales"] = matrix.scales.to(half)
        matrices[name] = {"in_features": matrix.in_features, **asdict(matrix.format)}
    _write_tensors(tensors, folder / WEIGHTS_FILE)
    spec_json = TypeAdapter(DecoderSpec).dump_python(spec, mode="json")
    _write_description({"spec": spec_json, "matrices": matrices}, folder / WEIGHTS_DESCRIPTION)


def save_cache(decoder: QuantizedDecoder, folder: Path) -> None:
    """Writes the half that belongs to one target; the decoder's weights are not looked at."""
    tensors = {
        f"{index}.{side}.{part}": getattr(getattr(constants, side), part)
        for index, constants in enumerate(decoder.kv_constants)
        for side in ("key", "value")
        for part in ("center", "balance")
    }
    description = {
        "layout": [asdict(layer) for layer in decoder.layout],
        "kv_format": TypeAdapter(KvFormat).dump_python(decoder.kv_format, mode="json"),
        "kv_static": [
            {"key": [entry.key.scale, entry.key.zero], "value": [entry.value.scale, entry.value.zero]}
            for entry in decoder.kv_constants
        ],
        "chunk": decoder.chunk,
        "context": decoder.context,
    }
    _write_tensors(tensors, folder / CACHE_FILE)
    _write_description(description, folder / CACHE_DESCRIPTION)


def _write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path)
    except SafetensorError as fault:
        raise UsageError(f"cannot write {path} ({fault})", "free space, or set SLM_EXPORT_CACHE") from None


def _write_description(description: dict[str, Any], path: Path) -> None:
    text = json.dumps({"format_version": FORMAT_VERSION, **description}, indent=1, sort_keys=True)
    path.write_text(text, encoding="utf-8")


def load_quantized(folder: Path) -> QuantizedDecoder:
    """Reads a folder with both halves. Raises CheckpointError when it is damaged."""
    try:
        weights, cache = (_read_description(folder / name) for name in (WEIGHTS_DESCRIPTION, CACHE_DESCRIPTION))
        return _assemble(weights, _read_tensors(folder / WEIGHTS_FILE), cache, _read_tensors(folder / CACHE_FILE))
    except (OSError, SafetensorError, json.JSONDecodeError, UnicodeDecodeError, KeyError, ValidationError) as fault:
        raise CheckpointError(f"{folder}: not a readable quantized checkpoint ({fault})", "export again") from None


def _read_description(path: Path) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if description["format_version"] != FORMAT_VERSION:
        raise KeyError(f"format_version {description['format_version']}")
    return description


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}


def _assemble(
    weights: dict[str, Any], tensors: dict[str, torch.Tensor], cache: dict[str, Any], constants: dict[str, torch.Tensor]
) -> QuantizedDecoder:
    matrices = {name: _matrix(name, entry, tensors) for name, entry in weights["matrices"].items()}
    taken = {f"{name}.{part}" for name in matrices for part in MATRIX_PARTS}

    def side(index: int, name: str, static: dict[str, Any]) -> ChannelConstants:
        center, balance = constants[f"{index}.{name}.center"], constants[f"{index}.{name}.balance"]
        return ChannelConstants(center, balance, float(static[name][0]), int(static[name][1]))

    return QuantizedDecoder(
        TypeAdapter(DecoderSpec).validate_python(weights["spec"]),
        DecoderWeights(matrices, {name: value for name, value in tensors.items() if name not in taken}),
        tuple(LayerCache(**layer) for layer in cache["layout"]),
        TypeAdapter(KvFormat).validate_python(cache["kv_format"]),
        tuple(
            LayerKvConstants(side(index, "key", static), side(index, "value", static))
            for index, static in enumerate(cache["kv_static"])
        ),
        int(cache["chunk"]),
        int(cache["context"]),
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
