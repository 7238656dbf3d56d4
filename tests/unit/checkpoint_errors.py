"""The error of a checkpoint that cannot be read, after checking what holds for every user error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import tiny_config, write_config

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.checkpoint.family import read_spec
from exporter.decoder.weight_names import decoder_weights
from exporter.errors import CheckpointError, ExitCode, SlmExportError


def raised_by(action: Callable[[], object], kind: type[SlmExportError] = CheckpointError) -> SlmExportError:
    """The error of `action`, after checking what holds for every user error: exit code 2, one line, a next step."""
    with pytest.raises(kind) as caught:
        action()
    fault = caught.value
    assert fault.exit_code == ExitCode.USAGE
    assert "\n" not in str(fault)
    assert fault.message
    assert fault.next_step
    return fault


def read_everything(folder: Path, adapter: Path | None = None) -> None:
    """Opens a checkpoint and reads each weight and the tokenizer, as an export does."""
    checkpoint = open_checkpoint(folder, adapter)
    checkpoint.text_codec()
    for weight in decoder_weights(checkpoint.spec):
        checkpoint.weight(weight.name)


def error_of(folder: Path, adapter: Path | None = None) -> str:
    return str(raised_by(lambda: read_everything(folder, adapter)))


def spec_error(tmp_path: Path, **changes: Any) -> str:
    """The error of a checkpoint that is sound but for `changes` to its config."""
    write_config(tmp_path, tiny_config(**changes))
    return str(raised_by(lambda: read_spec(tmp_path)))
