"""Text to token ids and back, from the checkpoint's own tokenizer files."""

from __future__ import annotations

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
        except Exception as fault:  # noqa: BLE001  tokenizers raises bare Exception for every malformed file
            raise CheckpointError(f"{path}: not a readable tokenizer ({fault})", "copy the file again") from None
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= vocab_size:
            raise CheckpointError(
                f"{path}: token id {largest} is outside vocab_size={vocab_size} of config.json",
                "use the tokenizer that the model was trained with",
            )
        settings = _generation_settings(folder)
        begin, end = _token_ids("bos_token_id", settings, config), _token_ids("eos_token_id", settings, config)
        return TextCodec(tokenizer, begin[0] if begin else None, end)

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """Token ids of `text`, preceded by the begin id if the model has one and `begin` is set."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return [self.begin_id, *ids] if begin and self.begin_id is not None else ids

    def decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def windows(self, text: str, length: int, limit: int | None = None) -> list[list[int]]:
        """Non-overlapping windows of exactly `length` ids, each led by the begin id, from documents joined in order.

        A line holding only the separator ends a document; it becomes a blank line. Raises UsageError on too short a
        text.
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


def _generation_settings(folder: Path) -> Config:
    """`generation_config.json`, which a checkpoint need not have."""
    path = folder / "generation_config.json"
    return Config.read(path) if path.is_file() else Config({}, str(path))


def _token_ids(field: str, settings: Config, config: Config) -> tuple[int, ...]:
    """One token id or a list of them, or none. Generation settings come before `config.json`, even with a null."""
    source = settings if field in settings.values else config
    value = source.get(field, [])
    ids = value if isinstance(value, list) else [value]
    for token_id in ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise source.fault(field, f"must be a token id or a list of them, not {value!r}")
    return tuple(ids)
