"""A Hugging Face checkpoint folder as a DecoderSpec with lazily read weights."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from exporter.checkpoint.adapter import LoraAdapter
from exporter.checkpoint.config import Config
from exporter.checkpoint.family import Family, find_family
from exporter.checkpoint.tensors import TensorFolder
from exporter.checkpoint.text import TextCodec
from exporter.decoder.spec import EMBEDDING, HEAD, DecoderSpec, WeightSpec, decoder_weights
from exporter.decoder.weights import blockwise_product
from exporter.errors import CheckpointError

COMPANION_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
"""Files that an app needs beside the artifact, copied when the checkpoint has them."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Weights are read on demand through `weight`."""

    folder: Path
    config: Config
    family: Family
    spec: DecoderSpec
    tensors: TensorFolder
    adapter: LoraAdapter | None

    def weight(self, name: str, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """One weight, or some of its rows, by canonical name: float32, adapter merged. Read from disk each time, so that memory stays
        bounded. Raises CheckpointError when it is not finite."""
        tensor_name = self.family.tensor_name(name)
        values = self.tensors.read(tensor_name, rows)
        return values if self.adapter is None else self.adapter.apply(tensor_name, values, rows)

    def dense(self, name: str) -> torch.Tensor:
        return self.weight(name)

    def rows(self, name: str, index: torch.Tensor | slice) -> torch.Tensor:
        return self.weight(name, index)

    def product(self, value: torch.Tensor, name: str) -> torch.Tensor:
        rows, columns = self.tensors.shape(self.family.tensor_name(name))
        return blockwise_product(value, (rows, columns), functools.partial(self.weight, name))

    def text_codec(self) -> TextCodec:
        return TextCodec.read(self.folder, self.config, self.spec.vocab_size)

    def input_files(self) -> list[Path]:
        """Every file that the export reads, for the manifest."""
        files = [self.folder / "config.json", *self.tensors.paths()]
        if self.adapter is not None:
            files += [self.adapter.folder / "adapter_config.json", self.adapter.folder / "adapter_model.safetensors"]
        return files + [self.folder / name for name in COMPANION_FILES if (self.folder / name).is_file()]


def open_checkpoint(folder: Path, adapter: Path | None = None) -> Checkpoint:
    """Opens a folder and checks names and shapes of every weight against the spec, reading headers only.

    Raises CheckpointError naming the file or field.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder", "pass a Hugging Face checkpoint folder with --model")
    config = Config.read(folder / "config.json")
    family = find_family(config)
    spec = family.decoder_spec(config)
    tensors = TensorFolder(folder)
    merged = None if adapter is None else LoraAdapter(adapter)
    for weight in decoder_weights(spec):
        _check_weight(folder, family, tensors, weight)
    _check_tie(folder, family, spec, tensors)
    if merged is not None:
        merged.check_shapes({family.tensor_name(weight.name): weight.shape for weight in decoder_weights(spec)})
    return Checkpoint(folder, config, family, spec, tensors, merged)


def _check_tie(folder: Path, family: Family, spec: DecoderSpec, tensors: TensorFolder) -> None:
    """A tied config whose file holds another head would silently export the wrong one."""
    head, table = family.tensor_name(HEAD), family.tensor_name(EMBEDDING)
    if spec.tied_embedding and head in tensors and not torch.equal(tensors.read(head), tensors.read(table)):
        raise CheckpointError(
            f"{folder}: tie_word_embeddings is true, but {head} differs from {table}",
            "set tie_word_embeddings to false in config.json, or remove the tensor",
        )


def _check_weight(folder: Path, family: Family, tensors: TensorFolder, weight: WeightSpec) -> None:
    name = family.tensor_name(weight.name)
    if name not in tensors:
        hint = "set tie_word_embeddings in config.json if the head shares the embedding" if weight.name == HEAD else ""
        raise CheckpointError(
            f"{folder}: tensor {name} is missing from the safetensors files", hint or "copy all shards"
        )
    if tensors.shape(name) != weight.shape:
        raise CheckpointError(
            f"{folder}: tensor {name} has shape {tensors.shape(name)}, config.json implies {weight.shape}",
            "check that config.json belongs to these weights",
        )


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
