"""Lazy reading of safetensors folders: one tensor at a time, never the whole model twice in memory.

Two tensors that hold one weight in MXFP4 are read as that weight, under the name of its blocks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from exporter.checkpoint import mxfp4
from exporter.errors import CheckpointError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class TensorFolder:
    """Names, shapes and lazily read values of every tensor of a checkpoint folder, single-file or sharded."""

    def __init__(self, folder: Path, renamed: Callable[[str], str] = str) -> None:
        """`renamed` says under which name a stored tensor is asked for."""
        self.folder = folder
        files = self._files_by_tensor()
        self._stored = {renamed(name): name for name in files}
        self.files = {name: files[stored] for name, stored in self._stored.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def shape(self, name: str) -> tuple[int, ...]:
        """Read from the file's header. Raises CheckpointError when the index lists the tensor but its file lacks it, or blocks and scales
        do not go together."""
        scales = mxfp4.scales_name(name)
        if scales is None:
            return self._stored_shape(name)
        if scales not in self:
            raise CheckpointError(
                f"{self.folder}: tensor {scales} is missing beside {name}",
                f"copy all shards, or rename {name} to {name.removesuffix(mxfp4.BLOCKS)} if it holds floats",
            )
        shapes = self._stored_shape(name), self._stored_shape(scales)
        unpacked = mxfp4.unpacked_shape(*shapes)
        if unpacked is None:
            raise CheckpointError(
                f"{self.folder}: {name} and {scales} have shapes {shapes[0]} and {shapes[1]}, which are no MXFP4 blocks",
                "copy all shards again",
            )
        return unpacked

    def read(self, name: str, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """The tensor, or some of its rows, as float32. Raises CheckpointError when it is not finite or not readable.

        The file is mapped anew for each read, and only the pages of these rows are touched: memory stays bounded by the rows."""
        scales = mxfp4.scales_name(name)
        if scales is None:
            stored = self._stored_rows(name, rows)
            self._check_type(name, stored, stored.is_floating_point(), "a float type")
            values = stored.float()
        else:
            pair = self._stored_rows(name, rows), self._stored_rows(scales, rows)
            for each, tensor in zip((name, scales), pair, strict=True):
                self._check_type(each, tensor, tensor.dtype == torch.uint8, "the uint8 of MXFP4")
            values = mxfp4.unpack(*pair)
        if values.numel() and not torch.isfinite(torch.stack(torch.aminmax(values))).all():
            file = self.folder / self.files[name]
            raise CheckpointError(f"{file}: {name} holds NaN or infinite values", "retrain or restore it")
        return values

    def paths(self) -> list[Path]:
        """The safetensors files, sorted by name."""
        return [self.folder / file for file in sorted(set(self.files.values()))]

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        file = self.files[name]
        try:
            return tuple(self._handle(file).get_slice(self._stored[name]).get_shape())
        except SafetensorError as fault:
            raise CheckpointError(
                f"{self.folder / file}: cannot read {name} ({fault})", "copy the file and its index again"
            ) from None

    def _stored_rows(self, name: str, rows: slice | torch.Tensor) -> torch.Tensor:
        file = self.files[name]
        try:
            return self._handle(file).get_tensor(self._stored[name])[rows]
        except (SafetensorError, OSError, RuntimeError) as fault:
            raise CheckpointError(
                f"{self.folder / file}: cannot read {name} ({fault})", "copy the file again"
            ) from None

    def _check_type(self, name: str, tensor: torch.Tensor, right: bool, wanted: str) -> None:
        if not right:
            raise CheckpointError(
                f"{self.folder / self.files[name]}: {name} is {tensor.dtype}, not {wanted}",
                "pass the original checkpoint, not one that is already quantized",
            )

    def _files_by_tensor(self) -> dict[str, str]:
        index = self.folder / INDEX_FILE
        if not index.is_file():
            return self._single_file()
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {str(name): str(file) for name, file in weight_map.items()}
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as fault:
            raise CheckpointError(f"{index}: not a valid shard index ({fault})", "copy the file again") from None
        for file in sorted(set(files.values())):
            if not (self.folder / file).is_file():
                raise CheckpointError(
                    f"{self.folder / file}: not found, but {INDEX_FILE} lists it", "copy the missing shard"
                )
        return files

    def _single_file(self) -> dict[str, str]:
        path = self.folder / SINGLE_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{self.folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is there",
                "pass a checkpoint saved with safetensors (save_pretrained)",
            )
        try:
            with safe_open(path, framework="pt") as handle:
                return dict.fromkeys(handle.keys(), SINGLE_FILE)
        except (SafetensorError, OSError) as fault:
            raise CheckpointError(f"{path}: not a readable safetensors file ({fault})", "copy the file again") from None

    def _handle(self, file: str) -> safe_open:
        try:
            return safe_open(self.folder / file, framework="pt")
        except (SafetensorError, OSError) as fault:
            raise CheckpointError(
                f"{self.folder / file}: not a readable safetensors file ({fault})", "copy the file again"
            ) from None
