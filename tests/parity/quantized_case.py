"""A case of a family as a quantized decoder, through the same functions as an export."""

from __future__ import annotations

from pathlib import Path

from family_cases import Case
from random_checkpoint import CONTEXT, VOCABULARY, edit_config, random_tokens, save_random_checkpoint

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.decoder.cache import CacheSettings, cache_layout
from exporter.quantize.calibration import KvCalibrator
from exporter.quantize.formats import KvFormat, RoundingMethod, ScaleFormat, WeightSettings
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.quantize.quantizer import quantize_decoder

CHUNK = 16


def quantized_case(
    case: Case, folder: Path, kv_format: KvFormat, scale_format: ScaleFormat, embedding_bits: int = 4
) -> QuantizedDecoder:
    """Saves a random checkpoint below `folder` and quantizes it by rounding to nearest."""
    saved = save_random_checkpoint(folder / "checkpoint", case.config, embedding=case.embedding)
    edit_config(saved, case.removed, **case.changes)
    checkpoint = open_checkpoint(saved).for_context(CONTEXT)
    spec, listener = checkpoint.spec, KvCalibrator(checkpoint.spec)
    settings = WeightSettings(RoundingMethod.RTN, 32, scale_format, embedding_bits)
    windows = random_tokens(2 * 64, VOCABULARY, seed=3).view(2, 64).tolist()
    weights = quantize_decoder(spec, checkpoint, settings, windows, listener.observe)
    layout, constants = cache_layout(spec, CacheSettings(CONTEXT, CHUNK)), listener.constants(kv_format)
    return QuantizedDecoder(spec, weights, layout, kv_format, constants, CHUNK, CONTEXT)
