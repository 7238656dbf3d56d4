"""A Hugging Face checkpoint folder as a DecoderSpec with lazily read weights."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from exporter.checkpoint.adapter import LoraAdapter
from exporter.checkpoint.config import Config
from exporter.checkpoint.family import CONFIG_FILE, Family, find_family, read_config
from exporter.checkpoint.storage import SECTION
from exporter.checkpoint.tensors import TensorFolder
from exporter.checkpoint.text import TextCodec
from exporter.checkpoint.text_part import text_name
from exporter.checkpoint.weight_map import Source
from exporter.decoder.spec import DecoderSpec, for_context
from exporter.decoder.weight_names import EMBEDDING, HEAD, WeightSpec, decoder_weights
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
    _unpacked: dict[str, torch.Tensor] = field(default_factory=dict, compare=False)
    """The last weight whose rows are not rows of a tensor: unpacked once, however many blocks of it are asked for."""

    def weight(self, name: str, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """One weight, or some of its rows, by canonical name: float32, adapter merged. Read from disk each time, so that memory stays
        bounded. Raises CheckpointError when it is not finite."""
        source = self.source(name)
        stored = source.stored_rows(rows, self.tensors.shape(source.tensor)[0])
        if stored is not None:
            return source.scaled(self._read(source.tensor, stored), rows)
        if name not in self._unpacked:
            self._unpacked.clear()
            self._unpacked[name] = source.scaled(source.unpack(self._read(source.tensor, source.slab)))
        return self._unpacked[name][rows]

    def _read(self, tensor: str, rows: slice | torch.Tensor) -> torch.Tensor:
        values = self.tensors.read(tensor, rows)
        return values if self.adapter is None else self.adapter.apply(tensor, values, rows)

    def source(self, name: str) -> Source:
        """Where a weight lies in the files."""
        return _find_source(self.family, self.config, self.tensors, name)

    def for_context(self, context: int) -> Checkpoint:
        """The checkpoint as a decoder with room for `context` tokens reads it."""
        return replace(self, spec=for_context(self.spec, context))

    def dense(self, name: str) -> torch.Tensor:
        return self.weight(name)

    def rows(self, name: str, index: torch.Tensor | slice) -> torch.Tensor:
        return self.weight(name, index)

    def product(self, value: torch.Tensor, name: str) -> torch.Tensor:
        rows, columns = self._shapes[name]
        return blockwise_product(value, (rows, columns), functools.partial(self.weight, name))

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {weight.name: weight.shape for weight in decoder_weights(self.spec)}

    def text_codec(self) -> TextCodec:
        return TextCodec.read(self.folder, self.config, self.spec.vocab_size)

    def input_files(self) -> list[Path]:
        """Every file that the export reads, for the manifest."""
        files = [self.folder / CONFIG_FILE, *self.tensors.paths()]
        if self.adapter is not None:
            files += [self.adapter.folder / "adapter_config.json", self.adapter.folder / "adapter_model.safetensors"]
        return files + [self.folder / name for name in COMPANION_FILES if (self.folder / name).is_file()]


def open_checkpoint(folder: Path, adapter: Path | None = None, text_only: bool = False) -> Checkpoint:
    """Opens a folder and checks names and shapes of every weight against the spec, reading headers only. With `text_only`, what counts
    is the text decoder of a whole with towers.

    Raises CheckpointError naming the file or field.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder", "pass a Hugging Face checkpoint folder with --model")
    config = read_config(folder / CONFIG_FILE, text_only)
    family = find_family(config, text_only)
    spec = family.decoder_spec(config)
    tensors = TensorFolder(folder, text_name if text_only else str)
    merged = None if adapter is None else LoraAdapter(adapter)
    checkpoint = Checkpoint(folder, config, family, spec, tensors, merged)
    for weight in decoder_weights(spec):
        _check_weight(checkpoint, weight)
    _check_tie(checkpoint)
    if merged is not None:
        sources = [checkpoint.source(weight.name) for weight in decoder_weights(spec)]
        merged.check_shapes({source.tensor: tensors.shape(source.tensor) for source in sources})
    return checkpoint


def _find_source(family: Family, config: Config, tensors: TensorFolder, name: str) -> Source:
    """The first of a weight's names that the files have, else the usual one."""
    candidates = family.weights(config).candidates(name)
    return next((source for source in candidates if source.tensor in tensors), candidates[0])


def _check_tie(checkpoint: Checkpoint) -> None:
    """A tied config whose file holds another head would silently export the wrong one."""
    tensors = checkpoint.tensors
    head, table = checkpoint.source(HEAD).tensor, checkpoint.source(EMBEDDING).tensor
    tied = checkpoint.spec.tied_embedding
    if tied and head in tensors and not torch.equal(tensors.read(head), tensors.read(table)):
        raise CheckpointError(
            f"{checkpoint.folder}: tie_word_embeddings is true, but {head} differs from {table}",
            "set tie_word_embeddings to false in config.json, or remove the tensor",
        )


def _check_weight(checkpoint: Checkpoint, weight: WeightSpec) -> None:
    folder, tensors, source = checkpoint.folder, checkpoint.tensors, checkpoint.source(weight.name)
    name, shape = source.tensor, source.stored_shape(weight.shape)
    if name not in tensors:
        raise CheckpointError(
            f"{folder}: tensor {name} is missing from the safetensors files", _where_to_find(checkpoint, weight)
        )
    if tensors.shape(name) != shape:
        raise CheckpointError(
            f"{folder}: tensor {name} has shape {tensors.shape(name)}, config.json implies {shape}",
            "check that config.json belongs to these weights",
        )


def _where_to_find(checkpoint: Checkpoint, weight: WeightSpec) -> str:
    if checkpoint.config.get(SECTION) is not None and not checkpoint.family.weights(checkpoint.config).packed:
        return "these files are quantized already (quantization_config): save the checkpoint with floats, as transformers reads it"
    if weight.name == HEAD:
        return "set tie_word_embeddings in config.json if the head shares the embedding"
    return "copy all shards"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
