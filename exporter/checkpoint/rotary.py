"""Rotary settings as `config.json` states them: `rope_parameters` since transformers 5, `rope_theta` and `rope_scaling` before."""

from __future__ import annotations

import math

from exporter.checkpoint.config import Config
from exporter.decoder.spec import RotaryScaling, RotaryScalingKind, RotarySpec
from exporter.errors import CheckpointError
from exporter.registry import did_you_mean

USUAL_THETA = 10000.0


def read_rotary(
    config: Config,
    head_dim: int,
    partial: float | None = None,
    theta: float = USUAL_THETA,
    former: dict[str, str] | None = None,
) -> RotarySpec:
    """Rotary settings that all layers share. `partial` is the rotated share of a head when the config names none; a family without
    it rotates whole heads. `theta` is the base when the config names none, `former` holds names that a family once gave to rules.
    """
    current, older = config.section("rope_parameters"), config.section("rope_scaling")
    if current.values and older.values:
        raise config.fault(
            "rope_scaling", "stands beside rope_parameters; keep the one that the model was trained with"
        )
    parameters = current if current.values else older
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if former and kind in former:
        parameters = Config(parameters.values | {"rope_type": former[kind]}, parameters.source)
    return rotary_of(config, parameters, head_dim, partial, theta=theta)


def rotary_of(
    config: Config,
    parameters: Config,
    head_dim: int,
    partial: float | None = None,
    theta_field: str = "rope_theta",
    theta: float = USUAL_THETA,
) -> RotarySpec:
    """Rotary settings from one object of parameters, which lacks what older checkpoints keep in `config` itself."""
    base = parameters.positive("rope_theta", config.positive(theta_field, theta))
    dimensions = head_dim
    share = parameters.number("partial_rotary_factor", config.number("partial_rotary_factor", partial or 1.0))
    if partial is not None:
        dimensions = int(head_dim * share)
        if not 0 < dimensions <= head_dim:
            raise config.fault("partial_rotary_factor", f"{share:g} is no share of a head of {head_dim} channels")
    elif share != 1:
        raise config.fault("partial_rotary_factor", f"{share:g}: this family rotates whole heads")
    if dimensions % 2:
        what = "head_dim" if partial is None else "partial_rotary_factor"
        raise config.fault(what, f"{dimensions} is odd; rotary embedding needs pairs of channels")
    return RotarySpec(dimensions, base, _scaling(config, parameters, dimensions))


def _scaling(config: Config, parameters: Config, dimensions: int) -> RotaryScaling | None:
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind == "default":
        return None
    known = [entry.value for entry in RotaryScalingKind]
    if kind not in known:
        raise CheckpointError(f"{parameters.source}: unsupported rope_type {kind!r}", did_you_mean(kind, known))
    rule = RotaryScalingKind(kind)
    if rule is RotaryScalingKind.LONGROPE:
        return _longrope(config, parameters, dimensions)
    if parameters.get("factor") is None:
        raise parameters.fault("factor", f"is required by rope_type {kind!r}")
    dynamic = rule is RotaryScalingKind.DYNAMIC
    return RotaryScaling(
        rule,
        parameters.positive("factor"),
        config.integer("max_position_embeddings") if dynamic else _original_context(config, parameters),
        parameters.positive("low_freq_factor", 1.0),
        parameters.positive("high_freq_factor", 4.0),
        parameters.positive("beta_fast", 32.0),
        parameters.positive("beta_slow", 1.0),
        _attention_factor(parameters) or _ratio_of_scales(parameters),
        truncate=parameters.flag("truncate", True),
    )


def _longrope(config: Config, parameters: Config, dimensions: int) -> RotaryScaling:
    original = _original_context(config, parameters)
    implied = config.integer("max_position_embeddings") / original
    short, long = (_channel_factors(parameters, f"{length}_factor", dimensions // 2) for length in ("short", "long"))
    return RotaryScaling(
        RotaryScalingKind.LONGROPE,
        parameters.positive("factor", implied),
        original,
        attention_factor=_attention_factor(parameters),
        short_factors=short,
        long_factors=long,
    )


def _channel_factors(parameters: Config, field: str, count: int) -> tuple[float, ...]:
    """One positive number per pair of rotated channels."""
    values = parameters.get(field)
    if not isinstance(values, list) or len(values) != count:
        raise parameters.fault(field, f"must list {count} numbers, one per pair of rotated channels")
    listed = Config({str(index): value for index, value in enumerate(values)}, f"{parameters.source}: {field}")
    return tuple(listed.positive(str(index)) for index in range(count))


def _original_context(config: Config, parameters: Config) -> int:
    """The context that the model was trained for before it was stretched; a field of the config itself comes first."""
    if config.get("original_max_position_embeddings") is not None:
        return config.integer("original_max_position_embeddings")
    return parameters.integer("original_max_position_embeddings", config.integer("max_position_embeddings"))


def _attention_factor(parameters: Config) -> float | None:
    return None if parameters.get("attention_factor") is None else parameters.positive("attention_factor")


def _ratio_of_scales(parameters: Config) -> float | None:
    """DeepSeek's way of saying how much YaRN sharpens: one factor for the rotated channels, of which that for all is taken off."""
    rotated, everywhere = (parameters.number(name, 0.0) for name in ("mscale", "mscale_all_dim"))
    if not rotated or not everywhere:
        return None
    factor = parameters.positive("factor")
    return sharpening(factor, rotated) / sharpening(factor, everywhere)


def sharpening(factor: float, scale: float) -> float:
    """YaRN's factor on scores of contexts stretched by `factor`, or a part of it."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
