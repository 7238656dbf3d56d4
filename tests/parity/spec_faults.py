"""Faults to put into a DecoderSpec, each of which must show in the logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from exporter.decoder.spec import DecoderSpec, LayerSpec, NormSpec, RotaryScaling

Fault = Callable[[DecoderSpec], DecoderSpec]


def layers(change: Callable[[int, LayerSpec], LayerSpec]) -> Fault:
    def apply(spec: DecoderSpec) -> DecoderSpec:
        changed = tuple(change(index, layer) for index, layer in enumerate(spec.layers))
        assert changed != spec.layers, "the fault changes nothing"
        return dataclasses.replace(spec, layers=changed)

    return apply


def attention(**changes: Any) -> Fault:
    """Every layer's AttentionSpec with these fields changed."""
    return layers(
        lambda _, layer: (
            layer
            if layer.attention is None
            else dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, **changes))
        )
    )


def recurrence(**changes: Any) -> Fault:
    """Every layer's recurrent mixer with these fields changed."""
    return layers(
        lambda _, layer: (
            layer
            if layer.recurrence is None
            else dataclasses.replace(layer, recurrence=dataclasses.replace(layer.recurrence, **changes))
        )
    )


def convolution(**changes: Any) -> Fault:
    """The convolutions of all recurrent mixers with these fields changed."""

    def change(layer: LayerSpec) -> LayerSpec:
        if layer.recurrence is None:
            return layer
        changed = dataclasses.replace(layer.recurrence.convolution, **changes)
        return dataclasses.replace(layer, recurrence=dataclasses.replace(layer.recurrence, convolution=changed))

    return layers(lambda _, layer: change(layer))


def windows(*values: int | None) -> Fault:
    """These windows, one per layer."""

    def change(index: int, layer: LayerSpec) -> LayerSpec:
        return dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=values[index]))

    return layers(change)


def feed_forward(**changes: Any) -> Fault:
    return layers(
        lambda _, layer: dataclasses.replace(layer, feed_forward=dataclasses.replace(layer.feed_forward, **changes))
    )


def rotary(**changes: Any) -> Fault:
    """Every rotary setting with these fields changed; layers without one keep doing without."""

    def change(layer: LayerSpec) -> LayerSpec:
        spec = layer.attention
        if spec is None or spec.rotary is None:
            return layer
        turned = dataclasses.replace(spec.rotary, **changes)
        return dataclasses.replace(layer, attention=dataclasses.replace(spec, rotary=turned))

    return layers(lambda _, layer: change(layer))


def scaling(**changes: Any) -> Fault:
    def apply(spec: DecoderSpec) -> DecoderSpec:
        current = spec.layers[0].attention.rotary
        assert current is not None
        assert isinstance(current.scaling, RotaryScaling)
        return rotary(scaling=dataclasses.replace(current.scaling, **changes))(spec)

    return apply


def norm_eps(eps: float) -> Fault:
    """Another epsilon in the norms around the blocks."""

    def other(norm: NormSpec | None) -> NormSpec | None:
        return None if norm is None else dataclasses.replace(norm, eps=eps)

    change = layers(lambda _, layer: dataclasses.replace(layer, attention_norm=other(layer.attention_norm)))
    return lambda spec: dataclasses.replace(change(spec), final_norm=dataclasses.replace(spec.final_norm, eps=eps))
