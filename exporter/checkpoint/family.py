"""What a model family is: a function from `config.json` to a DecoderSpec, and where the checkpoint keeps its weights."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoint.config import Config
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

    def published_spec(self) -> DecoderSpec:
        return self.decoder_spec(Config({"model_type": self.model_type, **self.published.config}, self.published.name))


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


def find_family(config: Config) -> Family:
    """The family of a config. Raises CheckpointError naming the nearest supported model_type."""
    known = all_families()
    if config.get("model_type") is None:
        raise config.fault("model_type", f"is missing; supported: {', '.join(known.names())}")
    model_type = config.text("model_type")
    if model_type in known:
        return known.get(model_type)
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


def _text_decoder(config: Config, known: Registry[Family]) -> str:
    """Points to a supported decoder inside a checkpoint of several parts."""
    inner = config.get("text_config")
    kind = inner.get("model_type") if isinstance(inner, dict) else None
    if kind is None or kind not in known:
        return ""
    return f"its text decoder is a {kind}, which is: save that part alone as a checkpoint of its own; "


def read_spec(folder: Path) -> DecoderSpec:
    """The DecoderSpec alone: reads `config.json` and no weight."""
    config = Config.read(folder / "config.json")
    return find_family(config).decoder_spec(config)
