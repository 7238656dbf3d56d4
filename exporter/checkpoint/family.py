"""What a model family is: a function from `config.json` to a DecoderSpec, and where the checkpoint keeps its weights."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exporter.checkpoint.config import Config
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, WeightMap
from exporter.decoder.spec import DecoderSpec
from exporter.errors import CheckpointError
from exporter.registry import Registry, did_you_mean


def llama_weights(config: Config) -> WeightMap:
    """The naming of a family that keeps its weights as Llama does."""
    return LLAMA_WEIGHTS


@dataclass(frozen=True)
class Family:
    """One `model_type`."""

    model_type: str
    decoder_spec: Callable[[Config], DecoderSpec]
    weights: Callable[[Config], WeightMap] = llama_weights


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
    if model_type not in known:
        raise CheckpointError(
            f"{config.source}: model_type: {model_type!r} is not supported", did_you_mean(model_type, known.names())
        )
    return known.get(model_type)


def read_spec(folder: Path) -> DecoderSpec:
    """The DecoderSpec alone: reads `config.json` and no weight."""
    config = Config.read(folder / "config.json")
    return find_family(config).decoder_spec(config)
