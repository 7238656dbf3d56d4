"""The ONNX Runtime CPU target: refusals, sizes, and lowering in a child process."""

from __future__ import annotations

import importlib.util
import math

from pydantic import TypeAdapter

from exporter.child import run_child
from exporter.decoder.recurrence import StateSpec
from exporter.decoder.spec import Activation, DecoderSpec, ExpertsSpec
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.recipe import AttentionKernel, Recipe
from exporter.targets.base import TARGETS, LowerOutcome, LowerRequest, Obtained, Refusal, TiedStorage

LOWER_TIME_LIMIT_S = 3600.0
SMALLEST_EXPERT_GROUP = 16
GATED_BY_QMOE = (Activation.SILU, Activation.QUICK_GELU)
PACKAGES = {"onnx_ir": "onnx-ir", "onnxruntime": "onnxruntime"}


class OnnxTarget:
    """ONNX models for ONNX Runtime on a CPU."""

    runtime = "onnxruntime"
    backend = "cpu"
    obtained = Obtained.MEASURED
    holds_palettes = False
    adopts_codes = False
    lowering_bytes_per_weight = 1
    driver = "exporter.targets.onnx.driver:open_driver"
    exact_driver: str | None = None

    def kv_format(self, recipe: Recipe) -> KvFormat:
        cache = recipe.kv_cache
        if cache.bits >= 16:
            return KvFormat(cache.bits, KvScaling.NONE)
        if recipe.onnx.attention is AttentionKernel.GQA:
            return KvFormat(cache.bits, KvScaling.STATIC, per_channel=cache.per_channel)
        return KvFormat(cache.bits, KvScaling.PER_TOKEN, cache.zero_point, cache.rotation)

    def slot_multiple(self, recipe: Recipe) -> int:
        """GroupQueryAttention counts slots as positions: a slot for each of the context."""
        return recipe.cache.context if recipe.onnx.attention is AttentionKernel.GQA else 1

    def state_bytes(self, state: StateSpec) -> int:
        return state.bytes

    def refusals(self, spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
        found = (
            _gqa_refusals(spec, recipe) if recipe.onnx.attention is AttentionKernel.GQA else _integer_refusals(recipe)
        )
        if recipe.weights.scale_format is ScaleFormat.BF16:
            found.append(
                Refusal(
                    "weights.scale_format bf16 does not fit the fp16 scales of MatMulNBits", "weights.scale_format=fp16"
                )
            )
        found += expert_refusals(spec, recipe)
        widths = {attention.head_dim for attention in spec.attentions}
        if recipe.kv_cache.bits == 4 and any(width % 2 for width in widths):
            found.append(
                Refusal("INT4 KV packs pairs of channels, and a head has an odd number of them", "kv_cache.bits=8")
            )
        if recipe.kv_cache.rotation and any(width & (width - 1) for width in widths):
            found.append(
                Refusal("a Hadamard rotation needs a head_dim that is a power of two", "kv_cache.rotation=false")
            )
        return found

    def stored_scales(self, chosen: ScaleFormat) -> ScaleFormat:
        return ScaleFormat.FP16

    def tied_storage(self, spec: DecoderSpec, recipe: Recipe) -> TiedStorage:
        return TiedStorage(True)

    def remarks(self, spec: DecoderSpec, recipe: Recipe) -> list[str]:
        return []

    def toolchain_problem(self) -> str | None:
        missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
        if missing:
            return f"{', '.join(missing)} not installed; pip install 'slm-export[onnx]'"
        return None

    def lower(self, request: LowerRequest) -> LowerOutcome:
        arguments = {
            "quantized": str(request.quantized),
            "artifact": str(request.artifact),
            "settings": request.recipe.onnx.model_dump(mode="json"),
        }
        log = request.logs / "lower.log"
        result = run_child("exporter.targets.onnx.lower:lower_in_child", arguments, log, LOWER_TIME_LIMIT_S)
        return TypeAdapter(LowerOutcome).validate_python(result)


def _integer_refusals(recipe: Recipe) -> list[Refusal]:
    found = []
    if recipe.kv_cache.bits == 32:
        reason = "a float32 cache is GroupQueryAttention's; integer attention caches fp16 at most"
        found.append(Refusal(reason, "kv_cache.bits=16"))
    elif recipe.kv_cache.bits == 16 and (recipe.kv_cache.zero_point or recipe.kv_cache.rotation):
        settings = "kv_cache.zero_point=false, kv_cache.rotation=false"
        found.append(Refusal("an fp16 cache has no codes that a zero point or a rotation could help", settings))
    return found


def _gqa_refusals(spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
    """What the operator GroupQueryAttention has no place for."""
    found = []
    if recipe.kv_cache.zero_point or recipe.kv_cache.rotation:
        settings = "kv_cache.zero_point=false, kv_cache.rotation=false"
        found.append(Refusal("GroupQueryAttention has static scales, and neither zero points nor rotations", settings))
    if recipe.cache.sinks:
        found.append(Refusal("GroupQueryAttention keeps no sink tokens behind its window", "onnx.attention=integer"))
    if recipe.onnx.attention_terms == 2:
        reason = "GroupQueryAttention rounds queries and probabilities as it likes; it has no terms"
        found.append(Refusal(reason, "onnx.attention_terms=1"))
    if any(attention.head_dim % 8 for attention in spec.attentions):
        found.append(Refusal("GroupQueryAttention needs heads of a multiple of 8 channels", "onnx.attention=integer"))
    if any(attention.latent for attention in spec.attentions):
        found.append(Refusal("GroupQueryAttention caches keys and values, not latents", "onnx.attention=integer"))
    if any(attention.learned_sinks for attention in spec.attentions):
        found.append(Refusal("learned sinks are not given to GroupQueryAttention", "onnx.attention=integer"))
    if any(attention.score_cap is not None or attention.distance_slopes for attention in spec.attentions):
        reason = "capped scores and slopes over distance are not given to GroupQueryAttention"
        found.append(Refusal(reason, "onnx.attention=integer"))
    return found


def expert_refusals(spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
    """What the operator QMoE has no place for."""
    found, size = [], recipe.weights.group_size
    blocks = [layer.feed_forward for layer in spec.layers if isinstance(layer.feed_forward, ExpertsSpec)]
    if blocks and (spec.hidden_size % size or size < SMALLEST_EXPERT_GROUP or size & (size - 1)):
        whole = math.gcd(spec.hidden_size, 1 << 7)
        reason = f"QMoE reads experts in groups of a power of two, {SMALLEST_EXPERT_GROUP} or more, that divide {spec.hidden_size} channels"
        found.append(Refusal(reason, f"weights.group_size={max(whole, SMALLEST_EXPERT_GROUP)}"))
    if any(block.expert.activation not in GATED_BY_QMOE or not block.expert.gated for block in blocks):
        found.append(Refusal("experts: QMoE gates with silu alone", "another runtime"))
    return found


TARGETS.add("onnxruntime-cpu", OnnxTarget())
