"""What crosses the border of an HTP graph and is known without calibration: names, encodings and tables of caches and angles."""

from __future__ import annotations

import torch

from exporter.decoder.cache import LayerCache
from exporter.decoder.rotary import attention_factor
from exporter.decoder.spec import RotarySpec
from exporter.quantize.kv_codec import ChannelConstants
from exporter.targets.executorch.qnn.graph import Constant, Encoding, Storage


def mask_name(layer: LayerCache) -> str:
    """Input that holds the mask of every layer with such a cache."""
    return f"mask_{layer.name}"


def cache_encoding(constants: ChannelConstants) -> Encoding:
    """Cache codes as the HTP reads them. INT4 codes use the lowest 16 of the 256 levels."""
    return Encoding(Storage.UINT8, constants.scale, constants.zero)


def code_range(encoding: Encoding, bits: int) -> tuple[float, float]:
    """Real values of the lowest and the highest cache code."""
    return -encoding.zero_point * encoding.scale, (2**bits - 1 - encoding.zero_point) * encoding.scale


def rotary_encoding(rotary: RotarySpec) -> Encoding:
    """Cosine and sine: zero and plus or minus the largest amplitude are exact."""
    return Encoding(Storage.UINT16, attention_factor(rotary) / 32767, 32768)


def nibble_table(encoding: Encoding) -> Constant:
    """[256, 2]: both nibbles of every byte, low one first, as cache codes."""
    byte = torch.arange(256)
    codes = torch.stack((byte & 0xF, byte >> 4), dim=1)
    return Constant("nibble_table", encoding.dequantize(codes), Storage.UINT8, encoding)
