"""An export, stage by stage: plan, load, quantize, lower, verify, package, report."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from exporter.checkpoint.checkpoint import COMPANION_FILES, Checkpoint, file_sha256, open_checkpoint
from exporter.folder import OutputFolder
from exporter.manifest import (
    REPORT_FILE,
    check_integrity,
    exported_recipe,
    read_manifest,
    tool_versions,
    write_manifest,
)
from exporter.plan import cache_settings, plan_export, recipe_layout, weight_settings
from exporter.progress import StageDisplay, peak_rss_bytes
from exporter.quantize.calibration import KvCalibrator
from exporter.quantize.quantized_checkpoint import QuantizedDecoder, load_quantized, save_quantized
from exporter.quantize.quantizer import quantize_decoder
from exporter.recipe import Recipe
from exporter.report.build import build_report, export_section, parity_section, quality_section, write_report
from exporter.resources import example_folder
from exporter.stage_cache import StageCache, cache_root, content_key
from exporter.targets.base import LowerOutcome, LowerRequest, Target, find_target
from exporter.texts import Texts, read_texts
from exporter.verify.audit import audit_lowering, audit_run
from exporter.verify.gates import require
from exporter.verify.parity import layerwise_perplexities
from exporter.verify.verification import EvaluationSet, VerificationResult, verify_artifact

VERIFICATION_FOLDER = "verification"
OUTCOME_FILE = "outcome.json"


@dataclass(frozen=True)
class ExportRequest:
    """What a user asked for. Paths None mean the bundled example's."""

    recipe: Recipe
    output: Path
    model: Path | None = None
    adapter: Path | None = None
    calibration: Path | None = None
    evaluation: Path | None = None
    force: bool = False
    resume: bool = True

    @property
    def model_folder(self) -> Path:
        return self.model or example_folder() / "model"

    @property
    def calibration_file(self) -> Path:
        return self.calibration or example_folder() / "calibration.txt"

    @property
    def evaluation_file(self) -> Path:
        return self.evaluation or example_folder() / "evaluation.txt"


@torch.no_grad()
def export(request: ExportRequest, display: StageDisplay) -> dict[str, Any]:
    """Runs every stage and returns the report. On any error the output folder is as it was before."""
    recipe, target = request.recipe, find_target(request.recipe.target.kind)
    output = OutputFolder(request.output, request.force)
    output.check()
    with display.stage("plan"):
        plan = plan_export(request.model_folder, recipe)
    _require_toolchain(target)
    with display.stage("load") as stage:
        checkpoint = open_checkpoint(request.model_folder, request.adapter)
        texts = read_texts(recipe, request.calibration_file, request.evaluation_file, checkpoint.text_codec())
        inputs = {path.name: file_sha256(path) for path in checkpoint.input_files()}
        text_hashes = {
            "calibration text": file_sha256(request.calibration_file),
            "evaluation text": file_sha256(request.evaluation_file),
        }
        stage.note = f"{checkpoint.spec.family}, {plan.parameters / 1e6:.2f} M parameters"
    cache = StageCache(cache_root(), request.resume)
    run_key = content_key(
        {"recipe": recipe.model_dump(mode="json"), "inputs": inputs, "output": str(request.output.resolve())}
    )
    logs = cache.logs(run_key)
    quantized = _quantize(recipe, target, checkpoint, texts, inputs, cache, display)
    lowered, outcome = _lower(recipe, target, quantized, texts, cache, logs, display)
    audit_lowering(plan, outcome)
    with output as folder:
        _assemble(folder, checkpoint, quantized, lowered)
        result, evaluation = _verify(recipe, target, quantized, folder, texts, request, logs, display)
        audit_run(plan, result)
        require(
            result.gates,
            "nothing was written; try finer weights or more calibration text, or accept it with --set gates.FIELD=LIMIT",
        )
        with display.stage("package"):
            evaluation.save(folder / VERIFICATION_FOLDER)
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            write_manifest(folder, recipe, _target_json(target, recipe, outcome), {**inputs, **text_hashes}, created)
        sections = {
            "parity": parity_section(target, result),
            "quality": quality_section(target, evaluation, result),
            "export": export_section(display.figures, peak_rss_bytes()),
        }
        shipped = sum((folder / name).stat().st_size for name in outcome.shipped_files)
        report = build_report(recipe, target, plan, _combined_hash(inputs), outcome, shipped, sections)
        write_report(report, folder / REPORT_FILE)
    return report


@torch.no_grad()
def verify_export(folder: Path, display: StageDisplay) -> dict[str, Any]:
    """Repeats integrity, parity and quality from an export's files alone. Raises GateFailed when any of them is off."""
    with display.stage("integrity") as stage:
        manifest = read_manifest(folder)
        stage.note = f"{check_integrity(folder, manifest)} files match the manifest"
    recipe = exported_recipe(folder, manifest)
    target = find_target(recipe.target.kind)
    _require_toolchain(target)
    verification = folder / VERIFICATION_FOLDER
    decoder, evaluation = load_quantized(verification), EvaluationSet.load(verification)
    logs = StageCache(cache_root(), resume=True).logs(content_key({"verify": str(folder.resolve())}))
    with display.stage("verify", logs / "verify.log") as running:
        result = verify_artifact(target, decoder, recipe, folder, evaluation, logs / "verify.log", running.advance)
    require(result.gates, "export again: these files do not do what their report says")
    return {
        "parity": parity_section(target, result),
        "quality": quality_section(target, evaluation, result),
    }


def _require_toolchain(target: Target) -> None:
    from exporter.errors import ToolchainMissing

    problem = target.toolchain_problem()
    if problem is not None:
        raise ToolchainMissing(problem)


def _quantize(
    recipe: Recipe,
    target: Target,
    checkpoint: Checkpoint,
    texts: Texts,
    inputs: dict[str, str],
    cache: StageCache,
    display: StageDisplay,
) -> Path:
    """Weights and KV constants, and the full-precision perplexity that quality is measured against."""
    layout, kv_format = recipe_layout(checkpoint.spec, recipe, target), target.kv_format(recipe)
    key = content_key(
        {
            "inputs": {
                name: digest for name, digest in inputs.items() if name.endswith((".safetensors", "config.json"))
            },
            "weights": recipe.weights.model_dump(mode="json"),
            "texts": [texts.calibration, texts.evaluation],
            "kv": [kv_format, layout],
            "cache": cache_settings(checkpoint.spec, recipe),
            "seed": recipe.seed,
            "torch": torch.__version__,
        }
    )

    def write(folder: Path) -> None:
        torch.manual_seed(recipe.seed)
        with display.stage("quantize") as stage:
            settings, chunks, listener = (
                weight_settings(recipe),
                cache_settings(checkpoint.spec, recipe),
                KvCalibrator(checkpoint.spec),
            )
            weights = quantize_decoder(
                checkpoint.spec,
                checkpoint,
                settings,
                texts.calibration,
                listener.observe,
                lambda done, total: stage.advance(done / total),
            )
            constants = listener.constants(kv_format)
            save_quantized(
                QuantizedDecoder(checkpoint.spec, weights, layout, kv_format, constants, chunks.chunk, chunks.context),
                folder,
            )
            stage.note = f"{settings.method.value}, groups of {settings.group_size}"
        with display.stage("reference") as stage:
            sums = layerwise_perplexities(checkpoint.spec, checkpoint, texts.evaluation)
            (folder / "reference.json").write_text(json.dumps(sums), encoding="utf-8")
            stage.note = "full-precision perplexity"

    folder, resumed = cache.produce("quantized", key, write)
    if resumed:
        with display.stage("quantize") as stage:
            stage.note = "resumed from an earlier run"
    return folder


def _lower(
    recipe: Recipe, target: Target, quantized: Path, texts: Texts, cache: StageCache, logs: Path, display: StageDisplay
) -> tuple[Path, LowerOutcome]:
    windows = texts.activations(recipe)
    key = content_key(
        {
            "quantized": quantized.name,
            "target": recipe.target.model_dump(mode="json"),
            "onnx": recipe.onnx.model_dump(mode="json"),
            "windows": windows,
            "tools": tool_versions(),
        }
    )

    def write(folder: Path) -> None:
        with display.stage("lower", logs / "lower.log") as stage:
            verification = folder / VERIFICATION_FOLDER
            verification.mkdir()
            request = LowerRequest(recipe, quantized, windows, folder, verification, logs)
            outcome = target.lower(request)
            stage.note = f"{target.runtime}, {target.backend}"
            (folder / OUTCOME_FILE).write_text(json.dumps(asdict(outcome)), encoding="utf-8")

    folder, resumed = cache.produce("lowered", key, write)
    if resumed:
        with display.stage("lower") as stage:
            stage.note = "resumed from an earlier run"
    return folder, TypeAdapter(LowerOutcome).validate_json((folder / OUTCOME_FILE).read_bytes())


def _assemble(folder: Path, checkpoint: Checkpoint, quantized: Path, lowered: Path) -> None:
    """Copies the lowered files, the quantized checkpoint and the checkpoint's companions into the output."""
    shutil.copytree(lowered, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(OUTCOME_FILE))
    shutil.copytree(
        quantized, folder / VERIFICATION_FOLDER, dirs_exist_ok=True, ignore=shutil.ignore_patterns("reference.json")
    )
    for name in COMPANION_FILES:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    shutil.copyfile(checkpoint.folder / "config.json", folder / "config.json")


def _verify(
    recipe: Recipe,
    target: Target,
    quantized: Path,
    folder: Path,
    texts: Texts,
    request: ExportRequest,
    logs: Path,
    display: StageDisplay,
) -> tuple[VerificationResult, EvaluationSet]:
    sums = json.loads((quantized / "reference.json").read_text(encoding="utf-8"))
    per_window = recipe.verify.window - 1
    few = min(recipe.verify.windows, len(texts.evaluation))
    evaluation = EvaluationSet(
        request.evaluation_file.name,
        texts.evaluation,
        few,
        recipe.verify.decode_tokens,
        math.exp(sum(sums[:few]) / (few * per_window)),
        math.exp(sum(sums) / (len(sums) * per_window)),
    )
    with display.stage("verify", logs / "verify.log") as stage:
        decoder = load_quantized(quantized)
        result = verify_artifact(target, decoder, recipe, folder, evaluation, logs / "verify.log", stage.advance)
        stage.note = f"top-1 {result.parity.top1_agreement:.4f} over {result.parity.tokens} tokens"
    return result, evaluation


def _target_json(target: Target, recipe: Recipe, outcome: LowerOutcome) -> dict[str, Any]:
    return {
        "runtime": target.runtime,
        "backend": target.backend,
        "soc": recipe.target.soc,
        "requirements": outcome.requirements,
    }


def _combined_hash(inputs: dict[str, str]) -> str:
    """One hash for the model: of its files' names and hashes."""
    text = "\n".join(f"{name} {inputs[name]}" for name in sorted(inputs))
    return hashlib.sha256(text.encode()).hexdigest()
