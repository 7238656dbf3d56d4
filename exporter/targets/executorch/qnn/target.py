"""The Qualcomm HTP target: refusals, sizes, and lowering in a child process."""

from __future__ import annotations

import difflib

from pydantic import TypeAdapter

from exporter.child import run_child
from exporter.decoder.recurrence import StateSpec
from exporter.decoder.spec import DecoderSpec, rotary_settings
from exporter.errors import ToolchainMissing
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat, WeightSettings
from exporter.recipe import Recipe
from exporter.targets.base import TARGETS, LowerOutcome, LowerRequest, Obtained, Refusal, TiedStorage
from exporter.targets.executorch.qnn import sdk
from exporter.targets.limits import expert_refusals, recurrence_refusals

LOWER_TIME_LIMIT_S = 3600.0
OTHER_TARGET = "a recipe for ONNX Runtime, such as onnx-cpu"


class QnnTarget:
    """ExecuTorch programs for the Hexagon tensor processor."""

    runtime = "executorch"
    backend = "qnn-htp"
    obtained = Obtained.SIMULATED
    holds_palettes = False
    adopts_codes = False
    lowering_bytes_per_weight = 12
    driver = "exporter.targets.executorch.qnn.driver:open_driver"
    exact_driver: str | None = None

    def kv_format(self, recipe: Recipe) -> KvFormat:
        return KvFormat(recipe.kv_cache.bits, KvScaling.STATIC, per_channel=recipe.kv_cache.per_channel)

    def slot_multiple(self, recipe: Recipe) -> int:
        return 2 if recipe.kv_cache.bits == 4 else 1

    def state_bytes(self, state: StateSpec) -> int:
        return state.bytes

    def refusals(self, spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
        unsupported = [*recurrence_refusals(spec, "the HTP"), *expert_refusals(spec, "the HTP")]
        return [*_recipe_refusals(recipe), *(unsupported or _spec_refusals(spec, recipe))]

    def stored_scales(self, chosen: ScaleFormat) -> ScaleFormat:
        return chosen

    def tied_storage(self, spec: DecoderSpec, recipe: Recipe) -> TiedStorage:
        if not spec.tied_embedding:
            return TiedStorage(True)
        table = WeightSettings(
            group_size=recipe.weights.group_size,
            scale_format=recipe.weights.scale_format,
            embedding_bits=recipe.weights.embedding_bits,
        ).table_format("embedding", spec)
        return TiedStorage(
            False,
            table.stored_bytes(spec.vocab_size, spec.hidden_size),
            "the HTP keeps the head in its own layout inside the context binary, so the host's lookup table is a "
            "second copy of the same codes",
        )

    def remarks(self, spec: DecoderSpec, recipe: Recipe) -> list[str]:
        if recipe.kv_cache.bits == 4:
            return [
                "INT4 KV halves the cache in memory, but the HTP unpacks it through a table gather, which writes what it "
                "unpacked: compare artifact.compiler_ddr_bytes of both in report.json; INT8 stays the default"
            ]
        return []

    def toolchain_problem(self) -> str | None:
        try:
            sdk.library_folder()
        except ToolchainMissing as fault:
            return str(fault)
        return None

    def lower(self, request: LowerRequest) -> LowerOutcome:
        sdk.library_folder()
        result = run_child(
            "exporter.targets.executorch.qnn.lower:lower_in_child",
            {
                "quantized": str(request.quantized),
                "windows": request.calibration_windows,
                "artifact": str(request.artifact),
                "verification": str(request.verification),
                "soc": request.recipe.target.soc,
                "share_weights": request.recipe.target.share_weights,
                "log": str(request.logs / "lower.log"),
            },
            request.logs / "lower.log",
            LOWER_TIME_LIMIT_S,
        )
        return TypeAdapter(LowerOutcome).validate_python(result)


def _recipe_refusals(recipe: Recipe) -> list[Refusal]:
    found = []
    chipsets = sdk.chipset_names()
    if recipe.target.soc is None:
        found.append(
            Refusal("target.soc is not set, and an NPU program is compiled for one chipset", "target.soc=SM8650")
        )
    elif chipsets and recipe.target.soc not in chipsets:
        nearest = difflib.get_close_matches(recipe.target.soc, chipsets, n=1)
        found.append(
            Refusal(
                f"target.soc {recipe.target.soc!r} is unknown to ExecuTorch, which has {', '.join(sorted(chipsets))}",
                f"target.soc={nearest[0]}" if nearest else "one of these",
            )
        )
    if recipe.weights.scale_format is not ScaleFormat.LPBQ:
        found.append(
            Refusal(
                f"weights.scale_format {recipe.weights.scale_format.value} cannot be held exactly by the HTP's blocks",
                "weights.scale_format=lpbq",
            )
        )
    if recipe.kv_cache.bits == 32:
        found.append(Refusal("the HTP computes with 16 bits at most", "kv_cache.bits=8"))
    if recipe.kv_cache.bits == 16:
        found.append(Refusal("16-bit KV doubles the HTP's matrix products for no gain in quality", "kv_cache.bits=8"))
    if recipe.kv_cache.zero_point or recipe.kv_cache.rotation:
        found.append(
            Refusal(
                "the HTP quantizes the cache with static scales: a zero point or rotation per token has no place there",
                "kv_cache.zero_point=false, kv_cache.rotation=false",
            )
        )
    return found


def _spec_refusals(spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
    found = []
    found += [Refusal(f"{what} not supported yet", nearest) for applies, what, nearest in _unsupported(spec) if applies]
    odd = [attention.head_dim for attention in spec.attentions if attention.head_dim % 2]
    if odd and recipe.kv_cache.bits == 4:
        found.append(Refusal(f"INT4 KV packs channel pairs, head_dim {odd[0]} is odd", "kv_cache.bits=8"))
    return found


def _unsupported(spec: DecoderSpec) -> list[tuple[bool, str, str]]:
    """Whether the model has it, what the graph for the HTP does not express, and the nearest that works."""
    return [
        (
            len(rotary_settings(spec)) > 1,
            "layers with different rotary settings are",
            "a model whose layers share one setting",
        ),
        (
            not rotary_settings(spec),
            "a model without rotary embedding in any layer is",
            "a model with rotary embedding",
        ),
        (
            any(attention.distance_slopes is not None for attention in spec.attentions),
            "attention biased by distance (ALiBi) is",
            OTHER_TARGET,
        ),
        (spec.learned_positions > 0, "a table of learned positions is", OTHER_TARGET),
    ]


TARGETS.add("executorch-qnn", QnnTarget())
