"""Rotary frequencies and angles. The rules follow RoFormer (arXiv 2104.09864), Llama 3's frequency bands, and
YaRN (arXiv 2309.00071), LongRoPE (arXiv 2402.13753) and dynamic NTK scaling; transformers' numbers are the oracle in tests."""

from __future__ import annotations

import math

import torch

from exporter.decoder.spec import RotaryScaling, RotaryScalingKind, RotarySpec


def inverse_frequencies(rotary: RotarySpec) -> torch.Tensor:
    """Angular step per position of each rotated channel pair: float32 [dimensions / 2]."""
    exponents = torch.arange(0, rotary.dimensions, 2, dtype=torch.int64).float() / rotary.dimensions
    base = 1.0 / (rotary.theta**exponents)
    scaling = rotary.scaling
    if scaling is None:
        return base
    if scaling.kind is RotaryScalingKind.LINEAR:
        return base / scaling.factor
    if scaling.kind is RotaryScalingKind.LLAMA3:
        return _llama3(base, scaling)
    if scaling.kind is RotaryScalingKind.LONGROPE:
        long = scaling.context > scaling.original_context
        return base / torch.tensor(scaling.long_factors if long else scaling.short_factors)
    if scaling.kind is RotaryScalingKind.DYNAMIC:
        return 1.0 / (_dynamic_theta(rotary, scaling) ** exponents)
    return _yarn(base, rotary, scaling)


def attention_factor(rotary: RotarySpec) -> float:
    """Factor on cosine and sine: 1 except for YaRN and LongRoPE, which sharpen attention over stretched contexts."""
    scaling = rotary.scaling
    if scaling is None or scaling.kind not in (RotaryScalingKind.YARN, RotaryScalingKind.LONGROPE):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1.0:
        return 1.0
    if scaling.kind is RotaryScalingKind.LONGROPE:
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))
    return 0.1 * math.log(scaling.factor) + 1.0


def cosine_sine(rotary: RotarySpec, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine tables for absolute `positions` [S]: two float32 tensors [S, dimensions / 2]."""
    angles = positions.float()[:, None] * inverse_frequencies(rotary)[None, :]
    factor = attention_factor(rotary)
    return angles.cos() * factor, angles.sin() * factor


def _dynamic_theta(rotary: RotarySpec, scaling: RotaryScaling) -> float:
    """NTK scaling: the base grows with the context, so that the slowest pair is stretched by the whole factor."""
    length = max(scaling.context, scaling.original_context)
    growth = scaling.factor * length / scaling.original_context - (scaling.factor - 1)
    return float(rotary.theta * growth ** (rotary.dimensions / (rotary.dimensions - 2)))


def _llama3(base: torch.Tensor, scaling: RotaryScaling) -> torch.Tensor:
    wavelength = 2 * math.pi / base
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    smooth = (scaling.original_context / wavelength - low) / (high - low)
    blended = (1 - smooth) * base / scaling.factor + smooth * base
    scaled = torch.where(wavelength > scaling.original_context / low, base / scaling.factor, base)
    medium = (wavelength <= scaling.original_context / low) & (wavelength >= scaling.original_context / high)
    return torch.where(medium, blended, scaled)


def _yarn(base: torch.Tensor, rotary: RotarySpec, scaling: RotaryScaling) -> torch.Tensor:
    def channel_of(rotations: float) -> float:
        ratio = scaling.original_context / (rotations * 2 * math.pi)
        return rotary.dimensions * math.log(ratio) / (2 * math.log(rotary.theta))

    low, high = channel_of(scaling.beta_fast), channel_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary.dimensions - 1)
    span = max(high - low, 0.001)
    ramp = ((torch.arange(rotary.dimensions // 2).float() - low) / span).clamp(0, 1)
    return base / scaling.factor * ramp + base * (1 - ramp)
