"""What a model family is: a function from `config.json` to a DecoderSpec, and where the checkpoint keeps its weights."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoint.config import Config
from exporter.checkpoint.storage import check_storage
from exporter.checkpoint.text_part import TEXT_CONFIG, text_part
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, WeightMap
from exporter.decoder.spec import DecoderSpec
from exporter.errors import CheckpointError
from exporter.registry import Registry, did_you_mean


def llama_weights(config: Config) -> WeightMap:
    """The naming of a family that keeps its weights as Llama does."""
    return LLAMA_WEIGHTS


@dataclass(frozen=True)
class Published:
    """A well-known small member: what its `config.json` says about its shape, and how many parameters it has."""

    name: str
    config: dict[str, Any]
    parameters: int


@dataclass(frozen=True)
class Family:
    """One `model_type`. `published` is the member that stands for the family where a matrix of families is made."""

    model_type: str
    decoder_spec: Callable[[Config], DecoderSpec]
    published: Published
    weights: Callable[[Config], WeightMap] = llama_weights
    text_parts: tuple[str, ...] = ()
    """What `model_type` says of checkpoints with towers, or of their `text_config`, whose text decoder is of this family."""

    def published_spec(self) -> DecoderSpec:
        return self.decoder_spec(Config({"model_type": self.model_type, **self.published.config}, self.published.name))


CONFIG_FILE = "config.json"
TOWERS = ("vision_config", "audio_config", "speech_config")
ENCODER_HEADS = ("ForMaskedLM", "ForConditionalGeneration", "ForSequenceClassification", "ForTokenClassification")
ENCODERS = ("albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
"""Whose checkpoints are often saved without the name of a head."""

FAMILIES: Registry[Family] = Registry("model_type")


def all_families() -> Registry[Family]:
    """Every family: each module of the package `families` registers its own."""
    from exporter.checkpoint import families

    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{module.name}")
    return FAMILIES


def find_family(config: Config, text_only: bool = False) -> Family:
    """The family of a config, with `text_only` also of the text decoder of a whole with towers. Raises CheckpointError naming the
    nearest supported model_type."""
    known = all_families()
    if config.get("model_type") is None:
        raise config.fault("model_type", f"is missing; supported: {', '.join(known.names())}")
    model_type = config.text("model_type")
    if model_type in known:
        return known.get(model_type)
    part = _family_of_part(model_type, known)
    if text_only and part is not None:
        return part
    problem = f"{config.source}: model_type: {model_type!r} {_why_not(config)}"
    raise CheckpointError(problem, f"{_text_decoder(config, known)}{did_you_mean(model_type, known.names())}")


def _why_not(config: Config) -> str:
    """What tells a reader whether waiting for support makes sense."""
    towers = [field.removesuffix("_config") for field in TOWERS if config.get(field) is not None]
    if towers:
        return f"has {' and '.join(towers)} towers; only decoders of text are exported"
    architectures = config.get("architectures") or []
    encoders = isinstance(architectures, list) and any(str(name).endswith(ENCODER_HEADS) for name in architectures)
    if encoders or config.get("is_encoder_decoder") is True or config.get("model_type") in ENCODERS:
        return "has an encoder; only decoders of text are exported"
    return "is not supported"


def _family_of_part(model_type: object, known: Registry[Family]) -> Family | None:
    families = (known.get(name) for name in known)
    return next((family for family in families if model_type in (family.model_type, *family.text_parts)), None)


def _text_decoder(config: Config, known: Registry[Family]) -> str:
    """Points to a supported decoder inside a checkpoint of several parts."""
    inner = config.get(TEXT_CONFIG)
    kind = inner.get("model_type") if isinstance(inner, dict) else config.get("model_type")
    family = _family_of_part(kind, known)
    if family is None:
        return ""
    return f"its text decoder is a {family.model_type}, which is: export it with --text-only; "


def read_config(path: Path, text_only: bool = False) -> Config:
    """A file `config.json`, or with `text_only` what it says of the text decoder. Raises CheckpointError when it cannot be read, or
    says that the weights are stored in a way that cannot."""
    config = Config.read(path)
    check_storage(config)
    if not text_only:
        return config
    part = text_part(config)
    check_storage(part)
    return part


def read_spec(folder: Path, text_only: bool = False) -> DecoderSpec:
    """The DecoderSpec alone: reads `config.json` and no weight."""
    return read_spec_file(folder / CONFIG_FILE, text_only)


def read_spec_file(config_file: Path, text_only: bool = False) -> DecoderSpec:
    """The same for a `config.json` that may lie anywhere."""
    config = read_config(config_file, text_only)
    return find_family(config, text_only).decoder_spec(config)
