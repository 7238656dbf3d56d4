"""Lowers a quantized decoder to ONNX in this process, and compares what ONNX Runtime makes of it with the oracle."""

from __future__ import annotations

from pathlib import Path

from driven import require_driver_parity

from exporter.quantize.quantized_checkpoint import QuantizedDecoder, save_quantized
from exporter.targets.onnx.driver import open_driver
from exporter.targets.onnx.lower import lower_in_child

SETTINGS = {"activation_bits": 32, "attention_terms": 2}


def lower_onnx(decoder: QuantizedDecoder, folder: Path, settings: dict = SETTINGS) -> None:
    save_quantized(decoder, folder)
    arguments = {"quantized": str(folder), "artifact": str(folder), "settings": settings}
    lower_in_child(arguments, lambda event: None)


def require_parity(decoder: QuantizedDecoder, folder: Path) -> None:
    require_driver_parity(open_driver(folder), decoder)
