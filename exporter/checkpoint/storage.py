"""Which quantized checkpoints can be read: `quantization_config` says how one was stored."""

from __future__ import annotations

from exporter.checkpoint.config import Config
from exporter.errors import CheckpointError

SECTION = "quantization_config"
READ = ("mxfp4",)
"""What `quant_method` may say."""


def check_storage(config: Config) -> None:
    """Raises CheckpointError for a checkpoint whose weights are stored in a way that is not read."""
    if config.get(SECTION) is None:
        return
    method = config.section(SECTION).get("quant_method")
    if method not in READ:
        raise CheckpointError(
            f"{config.source}: {SECTION}.quant_method: {method!r} is not read, only {' and '.join(READ)}",
            f"pass the float checkpoint that it was made from, or remove {SECTION} if these weights are floats",
        )
