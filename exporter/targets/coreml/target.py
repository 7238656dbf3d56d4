"""The Core ML target: refusals, sizes, and lowering in a child process. One instance for each profile."""

from __future__ import annotations

import importlib.util

from pydantic import TypeAdapter

from exporter.child import run_child
from exporter.decoder.recurrence import SelectiveScan, StateSpaceDual, StateSpec
from exporter.decoder.spec import DecoderSpec
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.recipe import Recipe
from exporter.targets.base import TARGETS, LowerOutcome, LowerRequest, Obtained, Refusal, TiedStorage
from exporter.targets.coreml.profile import Profile
from exporter.targets.coreml.recurrent_state import held_bytes
from exporter.targets.limits import expert_refusals

LOWER_TIME_LIMIT_S = 3600.0
NO_APPLE_RUNTIME = (
    "no Apple runtime takes part: the saved package is run by an interpreter; speed and placement only a device tells"
)


class CoreMlTarget:
    """ML Programs for iOS 18, macOS 15 and later."""

    runtime = "coreml"
    obtained = Obtained.SIMULATED
    holds_palettes = True
    adopts_codes = True
    lowering_bytes_per_weight = 5
    driver = "exporter.targets.coreml.driver:open_driver"
    exact_driver: str | None = "exporter.targets.coreml.driver:open_exact_driver"

    def __init__(self, profile: Profile) -> None:
        self.profile, self.backend = profile, profile.value

    def kv_format(self, recipe: Recipe) -> KvFormat:
        cache = recipe.kv_cache
        if cache.bits == 4:
            return KvFormat(4, KvScaling.PER_TOKEN, cache.zero_point, half_lanes=True)
        return KvFormat(16, KvScaling.NONE)

    def slot_multiple(self, recipe: Recipe) -> int:
        return self.profile.slot_multiple(recipe.cache.chunk)

    def state_bytes(self, state: StateSpec) -> int:
        return held_bytes(state)

    def refusals(self, spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
        cache = recipe.kv_cache
        found = [*expert_refusals(spec, "Core ML")]
        if self.profile.channels_first:
            found += _slow_sum_refusals(spec)
        if recipe.weights.scale_format is ScaleFormat.BF16:
            found.append(
                Refusal(
                    "weights.scale_format bf16 does not fit the fp16 scales of a package", "weights.scale_format=fp16"
                )
            )
        if cache.bits == 8:
            reason = (
                "Core ML states hold fp16 only, and two fp16 numbers hold three INT8 codes at best: an INT8 cache would save a third, "
                "an INT4 cache saves two thirds"
            )
            found.append(Refusal(reason, "kv_cache.bits=16 or kv_cache.bits=4"))
        if cache.bits == 16 and (cache.zero_point or cache.rotation):
            settings = "kv_cache.zero_point=false, kv_cache.rotation=false"
            found.append(Refusal("an fp16 cache has no codes that a zero point or a rotation could help", settings))
        elif cache.rotation:
            found.append(Refusal("Core ML packages do not rotate heads", "kv_cache.rotation=false"))
        return found

    def stored_scales(self, chosen: ScaleFormat) -> ScaleFormat:
        return ScaleFormat.FP16

    def tied_storage(self, spec: DecoderSpec, recipe: Recipe) -> TiedStorage:
        return TiedStorage(True)

    def remarks(self, spec: DecoderSpec, recipe: Recipe) -> list[str]:
        return [NO_APPLE_RUNTIME]

    def toolchain_problem(self) -> str | None:
        if importlib.util.find_spec("coremltools") is None:
            return "coremltools not installed; pip install 'slm-export[coreml]'"
        return None

    def lower(self, request: LowerRequest) -> LowerOutcome:
        arguments = {
            "quantized": str(request.quantized),
            "artifact": str(request.artifact),
            "profile": self.profile.value,
        }
        log = request.logs / "lower.log"
        result = run_child("exporter.targets.coreml.lower:lower_in_child", arguments, log, LOWER_TIME_LIMIT_S)
        return TypeAdapter(LowerOutcome).validate_python(result)


def _slow_sum_refusals(spec: DecoderSpec) -> list[Refusal]:
    """Measured: random numbers summed up with such a decay, every result rounded to fp16, against float32."""
    if not any(isinstance(layer.recurrence, SelectiveScan | StateSpaceDual) for layer in spec.layers):
        return []
    reason = (
        "recurrent layers sum up states, and the Neural Engine computes in fp16: sums that fade by a thousandth a token are off by a "
        "tenth after 2048 tokens"
    )
    return [Refusal(reason, "a recipe for GPU and CPU, such as ios")]


TARGETS.add("coreml-gpu", CoreMlTarget(Profile.GPU))
TARGETS.add("coreml-ane", CoreMlTarget(Profile.NEURAL_ENGINE))
