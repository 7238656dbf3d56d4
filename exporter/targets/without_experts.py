"""What some targets lack, for their plans to say: an operator that reads the matrices of chosen experts alone, and learned sinks."""

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
        return sink_refusals(spec)
    routing = blocks[0].routing
    reason = (
        f"{len(blocks)} layers send a token to {routing.chosen} of {routing.experts} experts, and {runtime} would read all of them "
        "for every token"
    )
    return [Refusal(reason, OTHER_TARGETS)]


def sink_refusals(spec: DecoderSpec) -> list[Refusal]:
    if not any(layer.attention.learned_sinks for layer in spec.layers):
        return []
    reason = "the attention of this target has no place for learned sinks"
    return [Refusal(reason, "a recipe for ONNX Runtime, such as onnx-cpu")]


class WithoutExperts:
    """The part of an interpreter that the plan never lets a decoder reach."""

    def experts(self, value: Any, prefix: str, experts: ExpertsSpec) -> Any:
        raise PlanRefused(f"{prefix}: this target has no experts", OTHER_TARGETS)

    def token_gate(self, value: Any, source: Any, vector: str) -> Any:
        raise PlanRefused(f"{vector}: this target has no experts", OTHER_TARGETS)
