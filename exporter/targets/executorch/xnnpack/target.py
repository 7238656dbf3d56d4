"""The ExecuTorch CPU target: refusals, sizes, and lowering in a child process."""

from __future__ import annotations

import importlib.util

from pydantic import TypeAdapter

from exporter.child import run_child
from exporter.decoder.recurrence import StateSpec
from exporter.decoder.spec import Activation, DecoderSpec, ExpertsSpec
from exporter.decoder.weight_names import WeightKind, decoder_weights
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.recipe import OperatorSet, Recipe
from exporter.targets.base import TARGETS, LowerOutcome, LowerRequest, Obtained, Refusal, TiedStorage
from exporter.targets.executorch.kernels import build
from exporter.targets.limits import latent_refusals

LOWER_TIME_LIMIT_S = 7200.0
GROUP_MULTIPLE = 32
"""XNNPACK's groups of INT4 weights are whole multiples of this."""
GATED_BY_EXPERTS = (Activation.SILU, Activation.QUICK_GELU)
TOKEN_BLOCK, LANE_CHANNELS = 16, 8
"""Slots and channels of a packed cache are whole multiples of these."""


class XnnpackTarget:
    """ExecuTorch programs for CPUs."""

    runtime = "executorch"
    backend = "xnnpack"
    obtained = Obtained.MEASURED
    holds_palettes = False
    adopts_codes = False
    lowering_bytes_per_weight = 6
    driver = "exporter.targets.executorch.xnnpack.driver:open_driver"
    exact_driver: str | None = None

    def kv_format(self, recipe: Recipe) -> KvFormat:
        cache = recipe.kv_cache
        if cache.bits >= 16:
            return KvFormat(cache.bits, KvScaling.NONE)
        return KvFormat(cache.bits, KvScaling.PER_TOKEN, cache.zero_point, cache.rotation)

    def slot_multiple(self, recipe: Recipe) -> int:
        return TOKEN_BLOCK if _packed(recipe) else 1

    def state_bytes(self, state: StateSpec) -> int:
        return state.bytes

    def refusals(self, spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
        found = [*_weight_refusals(spec, recipe), *_cache_refusals(spec, recipe), *_expert_refusals(spec, recipe)]
        if recipe.executorch.operators is OperatorSet.PLAIN and any(layer.states for layer in spec.layers):
            found.append(Refusal("recurrent layers are operators of this project", "executorch.operators=own"))
        return found

    def stored_scales(self, chosen: ScaleFormat) -> ScaleFormat:
        return ScaleFormat.BF16

    def tied_storage(self, spec: DecoderSpec, recipe: Recipe) -> TiedStorage:
        return TiedStorage(True)

    def remarks(self, spec: DecoderSpec, recipe: Recipe) -> list[str]:
        if not _own(spec, recipe):
            return []
        remark = f"the program calls operators of this project: an app links {build.LIBRARY} (see the guide export-for-android-cpu)"
        if build.find_compiler() is not None:
            return [remark]
        return [remark, f"no C++ compiler was found, so that it cannot be verified here; {build.FALLBACK}"]

    def toolchain_problem(self) -> str | None:
        missing = [name for name in ("executorch", "torchao") if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed; pip install 'slm-export[executorch]'"
        return None

    def lower(self, request: LowerRequest) -> LowerOutcome:
        if _own(request.spec, request.recipe):
            build.operators_library()
        arguments = {
            "quantized": str(request.quantized),
            "artifact": str(request.artifact),
            "settings": request.recipe.executorch.model_dump(mode="json"),
        }
        log = request.logs / "lower.log"
        function = "exporter.targets.executorch.xnnpack.lower:lower_in_child"
        result = run_child(function, arguments, log, LOWER_TIME_LIMIT_S)
        return TypeAdapter(LowerOutcome).validate_python(result)


def _packed(recipe: Recipe) -> bool:
    """Whether attention reads packed codes."""
    return recipe.executorch.operators is OperatorSet.OWN and recipe.kv_cache.bits <= 8


def _own(spec: DecoderSpec, recipe: Recipe) -> bool:
    """Whether the program calls operators of this project."""
    layers = any(layer.states or isinstance(layer.feed_forward, ExpertsSpec) for layer in spec.layers)
    return _packed(recipe) or recipe.executorch.activation_bits == 32 or layers


def _weight_refusals(spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
    found, weights = [], recipe.weights
    if weights.scale_format is not ScaleFormat.BF16:
        reason = (
            f"weights.scale_format {weights.scale_format.value} does not fit XNNPACK, whose groups have bf16 scales"
        )
        found.append(Refusal(reason, "weights.scale_format=bf16"))
    if weights.embedding_bits == 4 and spec.hidden_size % weights.group_size:
        reason = f"the lookup of INT4 tables takes whole groups, and {spec.hidden_size} is no multiple of {weights.group_size}"
        found.append(Refusal(reason, "weights.embedding_bits=8"))
    if recipe.executorch.activation_bits == 32:
        if recipe.executorch.operators is OperatorSet.PLAIN:
            reason = "executorch.activation_bits 32 is an operator of this project, and executorch.operators is plain"
            found.append(Refusal(reason, "executorch.activation_bits=8"))
        return found
    if weights.group_size % GROUP_MULTIPLE:
        reason = f"weights.group_size {weights.group_size}: XNNPACK takes multiples of {GROUP_MULTIPLE}"
        found.append(Refusal(reason, f"weights.group_size={GROUP_MULTIPLE}"))
    grouped = [weight for weight in decoder_weights(spec) if weight.kind is WeightKind.MATRIX]
    rest = next((weight for weight in grouped if weight.shape[1] % weights.group_size), None)
    if rest is not None:
        reason = f"{rest.name} has {rest.shape[1]} inputs, no multiple of weights.group_size {weights.group_size}"
        found.append(Refusal(reason, "executorch.activation_bits=32"))
    return found


def _expert_refusals(spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
    """What the operator of this project has no place for."""
    blocks = [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, ExpertsSpec)]
    found = []
    if blocks and recipe.executorch.operators is OperatorSet.PLAIN:
        found.append(Refusal("experts are an operator of this project", "executorch.operators=own"))
    if any(block.expert.activation not in GATED_BY_EXPERTS or not block.expert.gated for block in blocks):
        found.append(Refusal("the operator of experts gates with silu alone", "another runtime"))
    return found


def _cache_refusals(spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
    found, cache = latent_refusals(spec), recipe.kv_cache
    if cache.bits >= 16 and (cache.zero_point or cache.rotation):
        settings = "kv_cache.zero_point=false, kv_cache.rotation=false"
        found.append(Refusal("a float cache has no codes that a zero point or a rotation could help", settings))
    widths = {attention.head_dim for attention in spec.attentions}
    if cache.bits == 4 and any(width % 2 for width in widths):
        reason = "INT4 KV packs pairs of channels, and a head has an odd number of them"
        found.append(Refusal(reason, "kv_cache.bits=8"))
    if _packed(recipe) and any(width % LANE_CHANNELS for width in widths):
        reason = f"packed caches cut heads into {LANE_CHANNELS} channels, and a head has {min(widths)}"
        found.append(Refusal(reason, "executorch.operators=plain"))
    if _packed(recipe) and recipe.cache.context < TOKEN_BLOCK:
        reason = f"packed caches have slots in blocks of {TOKEN_BLOCK}"
        found.append(Refusal(reason, f"cache.context={TOKEN_BLOCK}"))
    if cache.rotation and any(width & (width - 1) for width in widths):
        reason = "a Hadamard rotation needs a head_dim that is a power of two"
        found.append(Refusal(reason, "kv_cache.rotation=false"))
    return found


TARGETS.add("executorch-xnnpack", XnnpackTarget())
