"""The Core ML delegate of ExecuTorch: what the Core ML target carries, in one method of a .pte. One instance for each profile."""

from __future__ import annotations

import importlib.util

from pydantic import TypeAdapter

from exporter.child import run_child
from exporter.decoder.recurrence import StateSpec
from exporter.decoder.spec import DecoderSpec
from exporter.quantize.formats import KvFormat, ScaleFormat
from exporter.recipe import Recipe
from exporter.targets.base import TARGETS, LowerOutcome, LowerRequest, Obtained, Refusal, TiedStorage
from exporter.targets.coreml.profile import Profile
from exporter.targets.coreml.target import LOWER_TIME_LIMIT_S, CoreMlTarget

CHUNK_REMARK = (
    "one method for chunks, because ExecuTorch's runtime gives every method a cache of its own: a token costs a whole chunk "
    "(cache.chunk), computed from one read of the weights"
)


class ExecutorchCoreMlTarget:
    """Programs for ExecuTorch's runtime on iOS 18, macOS 15 and later. Everything but the container is the Core ML target's."""

    runtime = "executorch"
    obtained = Obtained.SIMULATED
    holds_palettes = True
    adopts_codes = True
    lowering_bytes_per_weight = 5
    driver = "exporter.targets.executorch.coreml.driver:open_driver"
    exact_driver: str | None = "exporter.targets.executorch.coreml.driver:open_exact_driver"

    def __init__(self, profile: Profile) -> None:
        self._package = CoreMlTarget(profile)
        self.profile, self.backend = profile, f"coreml-{profile.value}"

    def kv_format(self, recipe: Recipe) -> KvFormat:
        return self._package.kv_format(recipe)

    def slot_multiple(self, recipe: Recipe) -> int:
        return self._package.slot_multiple(recipe)

    def state_bytes(self, state: StateSpec) -> int:
        return self._package.state_bytes(state)

    def refusals(self, spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
        return self._package.refusals(spec, recipe)

    def stored_scales(self, chosen: ScaleFormat) -> ScaleFormat:
        return self._package.stored_scales(chosen)

    def tied_storage(self, spec: DecoderSpec, recipe: Recipe) -> TiedStorage:
        return self._package.tied_storage(spec, recipe)

    def remarks(self, spec: DecoderSpec, recipe: Recipe) -> list[str]:
        return [*self._package.remarks(spec, recipe), CHUNK_REMARK]

    def toolchain_problem(self) -> str | None:
        if importlib.util.find_spec("executorch") is None:
            return "executorch not installed; pip install 'slm-export[executorch]'"
        return self._package.toolchain_problem()

    def lower(self, request: LowerRequest) -> LowerOutcome:
        arguments = {
            "quantized": str(request.quantized),
            "artifact": str(request.artifact),
            "profile": self.profile.value,
        }
        entry = "exporter.targets.executorch.coreml.lower:lower_in_child"
        result = run_child(entry, arguments, request.logs / "lower.log", LOWER_TIME_LIMIT_S)
        return TypeAdapter(LowerOutcome).validate_python(result)


TARGETS.add("executorch-coreml", ExecutorchCoreMlTarget(Profile.GPU))
TARGETS.add("executorch-coreml-ane", ExecutorchCoreMlTarget(Profile.NEURAL_ENGINE))
