"""Text to token ids and back, from the checkpoint's own tokenizer files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from exporter.checkpoint.config import Config
from exporter.errors import CheckpointError, UsageError

DOCUMENT_SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class TextCodec:
    """A tokenizer with the ids that begin and end a text."""

    tokenizer: Tokenizer
    begin_id: int | None
    end_ids: tuple[int, ...]

    @staticmethod
    def read(folder: Path, config: Config, vocab_size: int) -> TextCodec:
        """Raises CheckpointError when the tokenizer is missing, broken, or larger than the model's vocabulary."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{path}: not found", "save the tokenizer beside the weights (tokenizer.save_pretrained)"
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as fault:  # tokenizers raises bare Exception for every malformed file
            raise CheckpointError(f"{path}: not a readable tokenizer ({fault})", "copy the file again") from None
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= vocab_size:
            raise CheckpointError(
                f"{path}: token id {largest} is outside vocab_size={vocab_size} of config.json",
                "use the tokenizer that the model was trained with",
            )
        settings = _generation_settings(folder)
        begin = settings.get("bos_token_id", config.get("bos_token_id"))
        end = settings.get("eos_token_id", config.get("eos_token_id"))
        ends = end if isinstance(end, list) else [end]
        return TextCodec(tokenizer, _first_id(begin), tuple(int(value) for value in ends if value is not None))

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """Token ids of `text`, preceded by the begin id if the model has one and `begin` is set."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [self.begin_id, *ids] if begin and self.begin_id is not None else ids

    def decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def windows(self, text: str, length: int, limit: int | None = None) -> list[list[int]]:
        """Non-overlapping windows of exactly `length` ids, each preceded by the begin id, from documents joined in order.

        A line holding only the separator ends a document; it becomes a blank line. Raises UsageError on too short a text.
        """
        ids = self.encode(text.replace(f"\n{DOCUMENT_SEPARATOR}\n", "\n\n"), begin=False)
        lead = [] if self.begin_id is None else [self.begin_id]
        step = length - len(lead)
        windows = [lead + ids[at : at + step] for at in range(0, len(ids) - step + 1, step)]
        if not windows:
            raise UsageError(f"the text has {len(ids)} tokens, one window needs {step}", "pass a longer text")
        return windows[:limit]


def read_text(path: Path, purpose: str) -> str:
    """Reads a UTF-8 text for `purpose`. Raises UsageError when it is missing, empty or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{purpose} file {path} not found", "pass an existing UTF-8 text file") from None
    except (UnicodeDecodeError, IsADirectoryError) as fault:
        raise UsageError(f"{purpose} file {path} is not UTF-8 text ({fault})", "convert it to UTF-8") from None
    if not text.strip():
        raise UsageError(f"{purpose} file {path} is empty", "pass text that the model should handle well")
    return text


def _generation_settings(folder: Path) -> dict:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise CheckpointError(f"{path}: not valid JSON ({fault})", "copy the file again") from None
    return settings if isinstance(settings, dict) else {}


def _first_id(value: object) -> int | None:
    if isinstance(value, list):
        value = value[0] if value else None
    return value if isinstance(value, int) else None
