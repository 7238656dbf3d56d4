"""What some targets lack, for their plans to say: an operator that reads the matrices of chosen experts alone, learned sinks, latents,
states of recurrent layers."""

from __future__ import annotations

from typing import Any

from exporter.decoder.spec import DecoderSpec, ExpertsSpec
from exporter.errors import PlanRefused
from exporter.targets.base import Refusal

OTHER_TARGETS = "a recipe for ONNX Runtime or ExecuTorch's CPU, such as onnx-cpu or android-cpu"


def expert_refusals(spec: DecoderSpec, runtime: str) -> list[Refusal]:
    """`runtime` as a reader knows it: "Core ML"."""
    blocks = [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, ExpertsSpec)]
    if not blocks:
        return attention_refusals(spec)
    routing = blocks[0].routing
    reason = (
        f"{len(blocks)} layers send a token to {routing.chosen} of {routing.experts} experts, and {runtime} would read all of them "
        "for every token"
    )
    return [Refusal(reason, OTHER_TARGETS)]


def attention_refusals(spec: DecoderSpec) -> list[Refusal]:
    """Of a target whose attention has neither learned sinks nor latents."""
    if not any(attention.learned_sinks for attention in spec.attentions):
        return latent_refusals(spec)
    return [
        Refusal("the attention of this target has no place for learned sinks", OTHER_TARGETS),
        *latent_refusals(spec),
    ]


def latent_refusals(spec: DecoderSpec) -> list[Refusal]:
    if all(attention.latent is None for attention in spec.attentions):
        return []
    nearest = "a recipe for ONNX Runtime, such as onnx-cpu"
    return [Refusal("the attention of this target has no place for latents", nearest)]


def recurrence_refusals(spec: DecoderSpec, runtime: str) -> list[Refusal]:
    """Of a target without states beside its cache."""
    if all(layer.recurrence is None for layer in spec.layers):
        return []
    reason = f"recurrent layers carry float32 states from call to call, which {runtime} is not given yet"
    return [Refusal(reason, OTHER_TARGETS)]


class WithoutExperts:
    """The part of an interpreter that the plan never lets a decoder reach."""

    def experts(self, value: Any, prefix: str, experts: ExpertsSpec) -> Any:
        raise PlanRefused(f"{prefix}: this target has no experts", OTHER_TARGETS)

    def token_gate(self, value: Any, source: Any, vector: str) -> Any:
        raise PlanRefused(f"{vector}: this target has no experts", OTHER_TARGETS)


class WithoutLatents:
    """The same for latent attention."""

    def merge_heads(self, value: Any) -> Any:
        raise PlanRefused("this target has no latent attention", OTHER_TARGETS)

    def head_products(self, value: Any, prefix: str, name: str, passed: int, keep: bool) -> Any:
        raise PlanRefused(f"{prefix}: this target has no latent attention", OTHER_TARGETS)


class WithoutRecurrence:
    """The same for recurrent layers."""

    def split(self, value: Any, sizes: tuple[int, ...]) -> Any:
        raise PlanRefused("this target has no recurrent layers", OTHER_TARGETS)

    def join(self, left: Any, right: Any) -> Any:
        raise PlanRefused("this target has no recurrent layers", OTHER_TARGETS)

    def causal_convolution(self, layer: int, convolution: Any, value: Any) -> Any:
        raise PlanRefused("this target has no recurrent layers", OTHER_TARGETS)

    def selective_scan(self, layer: int, scan: Any, value: Any, step: Any, entering: Any, leaving: Any) -> Any:
        raise PlanRefused("this target has no recurrent layers", OTHER_TARGETS)

    def state_space_dual(self, layer: int, dual: Any, value: Any, step: Any, entering: Any, leaving: Any) -> Any:
        raise PlanRefused("this target has no recurrent layers", OTHER_TARGETS)
