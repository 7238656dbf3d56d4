"""The Vulkan target: refusals, sizes, and lowering in a child process."""

from __future__ import annotations

import importlib.util

from pydantic import TypeAdapter

from exporter.child import run_child
from exporter.decoder.recurrence import StateSpec
from exporter.decoder.spec import DecoderSpec
from exporter.decoder.weight_names import HEAD, WeightKind, decoder_weights
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.recipe import Recipe
from exporter.targets.base import TARGETS, LowerOutcome, LowerRequest, Obtained, Refusal, TiedStorage
from exporter.targets.limits import expert_refusals, recurrence_refusals

LOWER_TIME_LIMIT_S = 7200.0
GROUP_MULTIPLE = 32
"""Groups of INT4 weights, and the width of a looked-up row, are whole multiples of this."""
ROW_MULTIPLE = 4
"""Rows of a matrix come in texels of four."""
OTHER_TARGET = "--recipe android-cpu"


class VulkanTarget:
    """ExecuTorch programs for the GPUs of phones."""

    runtime = "executorch"
    backend = "vulkan"
    obtained = Obtained.GRAPH
    holds_palettes = False
    adopts_codes = False
    lowering_bytes_per_weight = 6
    driver = "exporter.targets.executorch.vulkan.driver:open_driver"
    exact_driver: str | None = None

    def kv_format(self, recipe: Recipe) -> KvFormat:
        return KvFormat(recipe.kv_cache.bits, KvScaling.NONE)

    def slot_multiple(self, recipe: Recipe) -> int:
        """The operator that writes a cache writes consecutive slots, so that a ring cannot wrap: a slot for every position."""
        return recipe.cache.context

    def state_bytes(self, state: StateSpec) -> int:
        return state.bytes

    def refusals(self, spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
        return [
            *recurrence_refusals(spec, "a Vulkan program"),
            *_weight_refusals(spec, recipe),
            *_cache_refusals(recipe),
            *expert_refusals(spec, "the Vulkan delegate"),
        ]

    def stored_scales(self, chosen: ScaleFormat) -> ScaleFormat:
        return ScaleFormat.FP16

    def tied_storage(self, spec: DecoderSpec, recipe: Recipe) -> TiedStorage:
        if not spec.tied_embedding:
            return TiedStorage(True)
        groups = spec.hidden_size // recipe.weights.group_size
        size = recipe.kv_cache.bits // 8
        reason = "its codes are stored once, but the lookup and the product read the scales in two orders"
        return TiedStorage(False, size * groups * spec.vocab_size, reason)

    def remarks(self, spec: DecoderSpec, recipe: Recipe) -> list[str]:
        floats = "fp16" if recipe.kv_cache.bits == 16 else "float32"
        return [
            "no runtime on this machine runs a Vulkan program: the export checks the traced graph in float32, not the artifact",
            f"the GPU computes everything in {floats}, as the cache (kv_cache.bits)",
            "every layer has a slot for each position of the context; layers with a window, a cap or slopes read them all",
        ]

    def toolchain_problem(self) -> str | None:
        missing = [name for name in ("executorch", "torchao") if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed; pip install 'slm-export[executorch]'"
        return None

    def lower(self, request: LowerRequest) -> LowerOutcome:
        arguments = {"quantized": str(request.quantized), "artifact": str(request.artifact)}
        log = request.logs / "lower.log"
        function = "exporter.targets.executorch.vulkan.lower:lower_in_child"
        result = run_child(function, arguments, log, LOWER_TIME_LIMIT_S)
        return TypeAdapter(LowerOutcome).validate_python(result)


def _weight_refusals(spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
    found, weights = [], recipe.weights
    if weights.scale_format is not ScaleFormat.FP16:
        reason = f"weights.scale_format {weights.scale_format.value}: scales of the Vulkan delegate are fp16"
        found.append(Refusal(reason, "weights.scale_format=fp16"))
    tables = [("embedding_bits", weights.embedding_bits)]
    tables += [] if spec.tied_embedding else [("head_bits", weights.head_bits)]
    for name, bits in tables:
        if bits == 8:
            reason = f"weights.{name} 8: the Vulkan delegate looks up and multiplies INT4 groups only"
            found.append(Refusal(reason, f"weights.{name}=4"))
    if weights.group_size % GROUP_MULTIPLE:
        reason = f"weights.group_size {weights.group_size}: the Vulkan delegate takes multiples of {GROUP_MULTIPLE}"
        found.append(Refusal(reason, f"weights.group_size={GROUP_MULTIPLE}"))
    return [*found, *_shape_refusals(spec, weights.group_size)]


def _shape_refusals(spec: DecoderSpec, group_size: int) -> list[Refusal]:
    matrices = [weight for weight in decoder_weights(spec) if weight.kind is WeightKind.MATRIX or weight.name == HEAD]
    rest = next((weight for weight in matrices if weight.shape[1] % group_size), None)
    found = []
    if rest is not None:
        reason = f"{rest.name} has {rest.shape[1]} inputs, no multiple of weights.group_size {group_size}"
        found.append(Refusal(reason, OTHER_TARGET))
    elif spec.hidden_size % max(group_size, GROUP_MULTIPLE):
        reason = f"the lookup of INT4 tables takes whole groups, and {spec.hidden_size} is no multiple of {group_size}"
        found.append(Refusal(reason, OTHER_TARGET))
    rows = {weight.name: weight.shape[0] for weight in matrices} | {"the head": spec.vocab_size}
    odd = next((name for name, count in rows.items() if count % ROW_MULTIPLE), None)
    if odd is not None:
        reason = f"{odd} has {rows[odd]} rows, and the Vulkan delegate takes multiples of {ROW_MULTIPLE}"
        found.append(Refusal(reason, OTHER_TARGET))
    return found


def _cache_refusals(recipe: Recipe) -> list[Refusal]:
    found, cache = [], recipe.kv_cache
    if cache.bits < 16:
        reason = f"INT{cache.bits} KV: the Vulkan delegate writes and reads floats in a cache, and has no operator that packs codes"
        found.append(Refusal(reason, "kv_cache.bits=16"))
    if cache.zero_point or cache.rotation:
        settings = "kv_cache.zero_point=false, kv_cache.rotation=false"
        found.append(Refusal("a float cache has no codes that a zero point or a rotation could help", settings))
    return found


TARGETS.add("executorch-vulkan", VulkanTarget())
