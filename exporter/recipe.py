"""Recipes: what to export, how to quantize it, and which gates it must pass. The schema is strict: no unknown keys.

A recipe is a YAML file. `extends: NAME` takes every value of another recipe and overrides some; `--set a.b=value`
overrides on the command line. All faults are reported at once.
"""

from __future__ import annotations

import copy
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporter.errors import RecipeError, UsageError
from exporter.quantize.formats import RoundingMethod, ScaleFormat
from exporter.registry import did_you_mean
from exporter.resources import recipe_folder

SCHEMA_VERSION = 1
SMALLEST_WINDOW = 16
"""Tokens: shorter sequences say nothing about quality."""


class Section(BaseModel):
    """Base of every section: immutable, unknown keys and infinite numbers refused (a null switches a limit off)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class TargetSection(Section):
    """Where the artifact runs."""

    kind: str = "executorch-qnn"
    """Target name; `slm-export doctor` lists those installed."""
    soc: str | None = None
    """Qualcomm chipset, as ExecuTorch names it; NPU targets need it."""
    share_weights: bool = True
    """Store weights once for prefill and decode in the shipped program."""


class WeightsSection(Section):
    """How weight matrices are quantized."""

    method: RoundingMethod = RoundingMethod.GPTQ
    """rtn, search, or gptq (arXiv 2210.17323) with the calibration text."""
    group_size: Literal[16, 32, 64, 128] = 32
    """Input channels that share a scale; the last group of a row may be a remainder."""
    scale_format: ScaleFormat = ScaleFormat.LPBQ
    """fp16, bf16, or lpbq (channel scale times 1..16, the only format that HTP blocks hold)."""
    embedding_bits: Literal[4, 8] = 4
    """Bits of the token table, and of the output head when the two are tied."""
    head_bits: Literal[4, 8] = 4
    """Bits of an untied output head."""
    palette_rows: Literal[0, 1, 2, 4, 8, 16, 32] = 0
    """Core ML: rows of a matrix that share a palette of 16 numbers, in place of scales per group; 0 for scales. INT8 tables keep theirs."""
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """GPTQ damping, as a share of the mean Hessian diagonal."""


class KvCacheSection(Section):
    """How keys and values are stored."""

    bits: Literal[4, 8, 16, 32] = 8
    """Bits per cached value; 16 and 32 are floats."""
    per_channel: bool = True
    """Static codecs (NPU): map every channel's own range onto the codes instead of the layer's."""
    zero_point: bool = False
    """Per-token codecs: store a zero point beside the scale."""
    rotation: bool = False
    """Per-token codecs: rotate heads by a Hadamard matrix first."""


class CacheSection(Section):
    """How many tokens are cached."""

    context: Annotated[int, Field(ge=2)] = 1024
    """Longest conversation in tokens; cut to the model's own limit."""
    chunk: Annotated[int, Field(ge=1, le=1024)] = 32
    """Tokens per prefill call."""
    window: Annotated[int, Field(ge=1)] | None = None
    """Bounds every layer to this many most recent tokens; a model's own shorter windows stay."""
    sinks: Annotated[int, Field(ge=0)] = 0
    """First tokens that windowed layers keep forever (StreamingLLM, arXiv 2309.17453)."""


class CalibrationSection(Section):
    """Text that quantization listens to; `--calibration FILE` names it."""

    tokens: Annotated[int, Field(ge=64)] = 8192
    """Tokens for weights and KV codecs."""
    activation_tokens: Annotated[int, Field(ge=64)] = 2048
    """Tokens for the ranges of 16-bit activations, where a target needs them."""
    window: Annotated[int, Field(ge=SMALLEST_WINDOW)] = 256
    """Length of one calibration sequence."""


class VerifySection(Section):
    """How much is verified."""

    windows: Annotated[int, Field(ge=1)] = 4
    """Evaluation sequences that the artifact runs, teacher-forced."""
    window: Annotated[int, Field(ge=SMALLEST_WINDOW)] = 256
    """Length of one evaluation sequence in tokens."""
    decode_tokens: Annotated[int, Field(ge=0)] = 24
    """Last tokens of the first sequence that go through the decode method one by one."""
    quality_windows: Annotated[int, Field(ge=1)] = 16
    """Evaluation sequences for the perplexity of full precision and oracle alone."""


class GatesSection(Section):
    """Limits that fail the export. A null switches a gate off and the report says so."""

    top1_agreement_min: Annotated[float, Field(ge=0, le=1)] | None = 0.98
    """Share of tokens at which artifact and oracle prefer the same next token."""
    mean_kl_max: Annotated[float, Field(gt=0)] | None = 0.002
    """Mean Kullback-Leibler divergence of the artifact from the oracle, nats."""
    perplexity_artifact_percent_max: Annotated[float, Field(gt=0)] | None = 0.5
    """Largest rise of perplexity from oracle to artifact, percent."""
    perplexity_quantized_percent_max: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest rise of perplexity from full precision to oracle, percent."""
    exact_max_abs_error_max: Annotated[float, Field(gt=0)] | None = 1e-4
    """Largest difference of any logit when artifact and oracle round nothing to 16 bits; targets whose artifacts can run so."""
    exact_mean_kl_max: Annotated[float, Field(gt=0)] | None = 1e-6
    """Mean Kullback-Leibler divergence of such an artifact from such an oracle, nats."""


class Int4KvGatesSection(GatesSection):
    """Gates that replace `gates` when kv_cache.bits is 4. An INT4 code is a coarse decision: where a key or value lies near the
    border of two codes, the last bit of 16-bit arithmetic decides, and the difference is a sixteenth of the range. Exact float
    arithmetic with 16-bit inputs alone already moves the trained 5 M model by a mean KL of 0.002."""

    top1_agreement_min: Annotated[float, Field(ge=0, le=1)] | None = 0.93
    """Share of tokens at which artifact and oracle prefer the same next token."""
    mean_kl_max: Annotated[float, Field(gt=0)] | None = 0.02
    """Mean Kullback-Leibler divergence of the artifact from the oracle, nats."""
    perplexity_artifact_percent_max: Annotated[float, Field(gt=0)] | None = 2.0
    """Largest rise of perplexity from oracle to artifact, percent."""
    perplexity_quantized_percent_max: Annotated[float, Field(gt=0)] | None = 3.0
    """Largest rise of perplexity from full precision to oracle, percent."""
    exact_max_abs_error_max: Annotated[float, Field(gt=0)] | None = None
    """Largest difference of any logit when artifact and oracle round nothing to 16 bits. Off: even the order of a sum in float32 moves
    a code now and then, and one code is visible in a logit."""
    exact_mean_kl_max: Annotated[float, Field(gt=0)] | None = 1e-5
    """Mean Kullback-Leibler divergence of such an artifact from such an oracle, nats."""


class AttentionKernel(StrEnum):
    """What computes attention in an ONNX model."""

    INTEGER = "integer"
    GQA = "gqa"


class OnnxSection(Section):
    """How an ONNX model computes; other targets do not read it."""

    activation_bits: Literal[8, 32] = 8
    """Activations that meet INT4 weights: rounded to INT8 per block of weights (several times faster), or float32."""
    attention_terms: Literal[1, 2] = 1
    """8-bit terms per query and probability that meet a quantized cache; a second one makes the rounding 250 times finer."""
    attention: AttentionKernel = AttentionKernel.INTEGER
    """integer: integer operators over rings, one scale per cached vector. gqa: com.microsoft::GroupQueryAttention, the operator of other
    exporters, for comparison: a slot for every position in every layer, and static scales per channel where the cache is quantized."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of a session; 0 leaves the choice to ONNX Runtime."""


class OperatorSet(StrEnum):
    """Whose operators an ExecuTorch program calls beside XNNPACK's."""

    OWN = "own"
    PLAIN = "plain"


class ExecutorchSection(Section):
    """How an ExecuTorch program for a CPU computes; other targets do not read it."""

    activation_bits: Literal[8, 32] = 8
    """Activations that meet quantized weights: rounded to INT8 row by row (XNNPACK), or float32 (own operators; for small models).
    With float32, attention over packed caches rounds queries and probabilities to 32 bits instead of 16."""
    operators: OperatorSet = OperatorSet.OWN
    """own: attention over packed INT8 and INT4 caches, norms and rotation in C++ operators that an app links; built here by the C++
    compiler. plain: ExecuTorch's own operators alone, which unpack every slot of a cache for every call."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of the runtime; 0 leaves the choice to ExecuTorch."""


class DeviceSection(Section):
    """Facts of the device that `plan` computes with."""

    memory_bandwidth_gb_s: Annotated[float, Field(gt=0)] = 77.0
    """Peak memory bandwidth, decimal gigabytes per second."""


class Recipe(Section):
    """A whole recipe."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    name: Annotated[str, Field(pattern=r"^[\w.+-]*\w[\w.+-]*$")]
    """Name, as in `--recipe NAME`; also the folder of its export, so letters, digits and `._+-` only."""
    description: str = ""
    """One line for `slm-export recipes`."""
    target: TargetSection = TargetSection()
    weights: WeightsSection = WeightsSection()
    kv_cache: KvCacheSection = KvCacheSection()
    cache: CacheSection = CacheSection()
    calibration: CalibrationSection = CalibrationSection()
    verify: VerifySection = VerifySection()
    gates: GatesSection = GatesSection()
    gates_int4_kv: Int4KvGatesSection = Int4KvGatesSection()
    onnx: OnnxSection = OnnxSection()
    executorch: ExecutorchSection = ExecutorchSection()
    device: DeviceSection = DeviceSection()
    seed: int = 0
    """Seed of everything random."""


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def recipe_path(name_or_path: str) -> Path:
    """A shipped recipe by name, or a YAML file by path. Raises UsageError naming the nearest recipe."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not os.path.isfile(path):
            raise UsageError(f"recipe file {path} not found", "pass an existing YAML file or a recipe's name")
        return path
    shipped = recipe_folder() / f"{name_or_path}.yaml"
    if not os.path.isfile(shipped):  # unlike Path.is_file, it says no to a name too long for a file
        raise UsageError(f"unknown recipe {name_or_path!r}", did_you_mean(name_or_path, recipe_names()))
    return shipped


def load_recipe(name_or_path: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads, inherits, overrides and validates. Raises RecipeError listing every fault."""
    path = recipe_path(name_or_path)
    own = _read_inherited(path, ())
    own.setdefault("name", path.stem)
    values = copy.deepcopy(own)
    for override in overrides:
        _apply_override(values, override)
    problems = recipe_problems(values)
    if problems:
        of_file = recipe_problems(own)
        named = [problem if problem in of_file else f"{problem} (given by --set)" for problem in problems]
        raise RecipeError(str(path), named, f"see: slm-export recipes show {path.stem}")
    return Recipe.model_validate(values)


def recipe_problems(values: Any) -> list[str]:
    """Every fault of a recipe's values, one line each; none when they are a recipe."""
    try:
        Recipe.model_validate(values)
    except ValidationError as fault:
        return [_problem(error["type"], error["loc"], error["msg"], error.get("input")) for error in fault.errors()]
    return []


def _read_inherited(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    seen = (*seen, path.resolve())
    if seen[-1] in seen[:-1]:
        through = " -> ".join(item.stem for item in seen[:-1])
        raise RecipeError(str(path), [f"extends itself through {through}"], "extend another recipe")
    values = _read_mapping(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    base = _read_inherited(_parent_path(path, str(parent)), seen)
    base.pop("name", None)
    return _merge(base, values)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise RecipeError(str(path), [f"cannot be read ({fault.strerror})"], "make it readable") from None
    except ValueError as fault:  # UnicodeDecodeError is one
        raise RecipeError(str(path), [f"not valid YAML ({fault})"], "correct the file") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(str(path), ["must hold a mapping of sections"], "see: slm-export recipes show android-npu")
    return values


def _parse_yaml(text: str) -> Any:
    """Raises ValueError with the reason on one line. PyYAML's constructors let out whatever they stumble over."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise ValueError(" ".join(str(fault).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as fault:
        raise ValueError(f"a number, date or tagged value is malformed: {' '.join(str(fault).split())}") from None


def _parent_path(path: Path, parent: str) -> Path:
    """A recipe beside the one that extends it, by file or by name; else a shipped one."""
    for beside in (path.parent / parent, path.parent / f"{parent}.yaml"):
        if beside.suffix in (".yaml", ".yml") and os.path.isfile(beside):
            return beside
    try:
        return recipe_path(parent)
    except UsageError as fault:
        raise RecipeError(str(path), [f"extends: {fault.message}"], fault.next_step) from None


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise UsageError(f"--set {override}: must be section.field=value", "for example --set kv_cache.bits=8")
    *sections, field = name.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UsageError(f"--set {override}: {section} is not a section", "see: slm-export recipes show NAME")
    try:
        place[field] = _parse_yaml(text)
    except ValueError as fault:
        raise UsageError(
            f"--set {override}: {text!r} is not a value ({fault})", "quote it, or write null, a number or a word"
        ) from None


def _problem(kind: str, location: tuple[int | str, ...], message: str, given: Any) -> str:
    name = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        return f"{name}: unknown key; {did_you_mean(str(location[-1]), _known_keys(location[:-1]))}"
    return f"{name}: {message[0].lower()}{message[1:]}, not {given!r}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def recipe_json_schema() -> dict[str, Any]:
    """JSON Schema of recipe files, for editors."""
    schema = Recipe.model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "Recipe whose values this one starts from."}
    schema["title"] = "slm-export recipe"
    schema["required"] = []
    return schema
