"""Lowers a quantized decoder to an ExecuTorch program in this process, and compares what the runtime makes of it with the oracle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from driven import require_driver_parity

from exporter.decoder.cache import CacheSettings
from exporter.quantize.formats import KvFormat, ScaleFormat, WeightFormat
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, save_quantized
from exporter.targets.executorch.xnnpack.driver import open_driver
from exporter.targets.executorch.xnnpack.lower import lower_in_child
from exporter.targets.executorch.xnnpack.target import TOKEN_BLOCK
from tests.unit.helpers import TinyModel, quantized_decoder

FLOAT = {"activation_bits": 32}
BF16_32 = WeightFormat(4, 32, ScaleFormat.BF16)


def lower_executorch(
    model: TinyModel, cache: CacheSettings, kv_format: KvFormat, folder: Path, settings: dict[str, Any] = FLOAT
) -> QuantizedDecoder:
    """Slots in blocks, as the target rounds them where attention reads packed codes."""
    packed = kv_format.bits <= 8 and settings.get("operators") != "plain"
    decoder = quantized_decoder(model, cache, kv_format, BF16_32, 16 if packed else 1)
    save_quantized(decoder, folder)
    lower_in_child({"quantized": str(folder), "artifact": str(folder), "settings": settings}, lambda event: None)
    return decoder


def lower_in_blocks(
    decoder: QuantizedDecoder, folder: Path, settings: dict[str, Any] = FLOAT
) -> tuple[QuantizedDecoder, dict[str, Any]]:
    """A program in `folder`, the decoder that it must equal, with slots in the blocks of packed caches, and what lowering says of it."""
    whole = tuple(replace(ring, slots=-(-ring.slots // TOKEN_BLOCK) * TOKEN_BLOCK) for ring in decoder.layout)
    decoder = replace(decoder, layout=whole)
    save_quantized(decoder, folder)
    arguments = {"quantized": str(folder), "artifact": str(folder), "settings": settings}
    return decoder, lower_in_child(arguments, lambda event: None)


def require_parity(
    decoder: QuantizedDecoder, folder: Path, largest_mean_kl: float = 2e-3, least_agreement: float = 0.97
) -> None:
    require_driver_parity(open_driver(folder), decoder, largest_mean_kl, least_agreement)
