"""The text decoder of a checkpoint that also has towers for images or sound: its part of `config.json`, and of the tensors' names."""

from __future__ import annotations

from typing import Any

from exporter.checkpoint.config import Config
from exporter.checkpoint.storage import SECTION

TEXT_CONFIG = "text_config"
SHARED_FIELDS = ("tie_word_embeddings", "vocab_size", "bos_token_id", "eos_token_id", SECTION)
"""What the whole may say for its text decoder."""

PREFIXES = ("model.language_model.", "language_model.")
"""Before the names that the decoder's tensors have in a checkpoint of its own."""

ROTARY_SECTIONS = ("rope_parameters", "rope_scaling")
POSITIONS_OF_SEVERAL_AXES = "mrope"
"""A rule that gives tokens of images a position for each axis; those of a text have the same number on all."""


def text_part(config: Config) -> Config:
    """The config of the text decoder alone: `text_config` where there is one, else the config itself."""
    inner = config.section(TEXT_CONFIG)
    if not inner.values:
        return Config(_plain_rotary(config.values), config.source)
    shared = {name: config.values[name] for name in SHARED_FIELDS if name in config.values}
    return Config(_plain_rotary(shared | inner.values), inner.source)


def _plain_rotary(values: dict[str, Any]) -> dict[str, Any]:
    changed = {}
    for name in ROTARY_SECTIONS:
        section = values.get(name)
        if isinstance(section, dict) and POSITIONS_OF_SEVERAL_AXES in (section.get("type"), section.get("rope_type")):
            changed[name] = section | {"type": "default", "rope_type": "default"}
    return values | changed


def text_name(tensor: str) -> str:
    """A tensor's name without what the whole puts before it."""
    prefix = next((each for each in PREFIXES if tensor.startswith(each)), "")
    return tensor.removeprefix(prefix)
