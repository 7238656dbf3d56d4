"""An export, stage by stage: plan, load, quantize, lower, verify, package, report."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exporter.checkpoint.checkpoint import file_sha256, open_checkpoint
from exporter.errors import ToolchainMissing
from exporter.folder import OutputFolder
from exporter.manifest import REPORT_FILE, check_integrity, exported_recipe, read_manifest, write_manifest
from exporter.plan import cache_settings, plan_export
from exporter.progress import StageDisplay, peak_rss_bytes
from exporter.quantize.quantized_checkpoint import load_quantized
from exporter.recipe import Recipe, recipe_names
from exporter.report.build import (
    artifact_obtained,
    build_report,
    export_section,
    parity_section,
    quality_section,
    write_report,
)
from exporter.report.html import write_html
from exporter.resources import example_folder
from exporter.stage_cache import StageCache, cache_root, content_key
from exporter.stages import Run, assemble, lower, quantize, reference, verify
from exporter.targets.base import VERIFICATION_FOLDER, LowerOutcome, Target, find_target
from exporter.texts import read_texts
from exporter.verify.audit import audit_lowering, audit_run
from exporter.verify.evaluation import EvaluationSet
from exporter.verify.gates import require
from exporter.verify.scores import ArtifactRun
from exporter.verify.verification import verify_artifact


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
    text_only: bool = False

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
def export(request: ExportRequest, display: StageDisplay, logits: Path | None = None) -> dict[str, Any]:
    """Runs every stage and returns the report. On any error the output folder is as it was before. `logits` names a file for the
    artifact's logits, float32 [tokens, V], for whoever compares artifacts."""
    recipe, target = request.recipe, find_target(request.recipe.target.kind)
    output = OutputFolder(request.output, request.force)
    output.check()
    with display.stage("plan"):
        plan = plan_export(request.model_folder, recipe, request.text_only)
    require_toolchain(target)
    run = _load(request, target, display)
    quantized, sums = quantize(run), reference(run)
    lowered, outcome = lower(run, quantized)
    audit_lowering(plan, outcome)
    with output as folder:
        assemble(run, lowered, folder)
        result, evaluation = verify(run, folder, sums, logits)
        audit_run(plan, result)
        require(result.gates, gate_step(recipe.name))
        with display.stage("package"):
            evaluation.save(folder / VERIFICATION_FOLDER)
            created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            hashes = {**run.inputs, **_text_hashes(request)}
            write_manifest(folder, recipe, _target_json(target, recipe, outcome), hashes, created)
        sections = {
            "parity": parity_section(target, result),
            "quality": quality_section(target, evaluation, result),
            "export": export_section(display.figures, peak_rss_bytes()),
        }
        shipped = sum((folder / name).stat().st_size for name in outcome.shipped_files)
        report = build_report(recipe, target, plan, _combined_hash(run.inputs), outcome, shipped, sections)
        write_report(report, folder / REPORT_FILE)
        write_html(report, folder)
    return report


def _load(request: ExportRequest, target: Target, display: StageDisplay) -> Run:
    with display.stage("load") as stage:
        checkpoint = open_checkpoint(request.model_folder, request.adapter, request.text_only)
        checkpoint = checkpoint.for_context(cache_settings(checkpoint.spec, request.recipe).context)
        texts = read_texts(request.recipe, request.calibration_file, request.evaluation_file, checkpoint.text_codec())
        inputs = {path.name: file_sha256(path) for path in checkpoint.input_files()}
        stage.note = checkpoint.spec.family
    cache = StageCache(cache_root(), request.resume)
    run_key = content_key(
        {"recipe": request.recipe.model_dump(mode="json"), "inputs": inputs, "output": str(request.output.resolve())}
    )
    name = request.evaluation_file.name
    return Run(request.recipe, target, checkpoint, texts, name, inputs, cache, cache.logs(run_key), display)


def _text_hashes(request: ExportRequest) -> dict[str, str]:
    return {
        "calibration text": file_sha256(request.calibration_file),
        "evaluation text": file_sha256(request.evaluation_file),
    }


@torch.no_grad()
def verify_export(folder: Path, display: StageDisplay) -> dict[str, Any]:
    """Repeats integrity, parity and quality from an export's files alone. Raises GateFailed when any of them is off."""
    with display.stage("integrity") as stage:
        manifest = read_manifest(folder)
        stage.note = f"{check_integrity(folder, manifest)} files match the manifest"
    recipe = exported_recipe(folder, manifest)
    target = find_target(recipe.target.kind)
    require_toolchain(target)
    verification = folder / VERIFICATION_FOLDER
    decoder, evaluation = load_quantized(verification), EvaluationSet.load(verification)
    logs = StageCache(cache_root(), resume=True).logs(content_key({"verify": str(folder.resolve())}))
    with display.stage("verify", logs / "verify.log") as running:
        artifact = ArtifactRun(target, folder, logs / "verify.log", running.advance)
        result = verify_artifact(artifact, decoder, recipe, evaluation)
    require(result.gates, "export again: these files do not do what their report says")
    return {
        "parity": parity_section(target, result),
        "quality": quality_section(target, evaluation, result),
    }


def gate_step(recipe: str) -> str:
    """What to try after an export that missed a gate."""
    small = f"{recipe}-small"
    other = f"--recipe {small} for a small model, " if small in recipe_names() else ""
    return (
        f"nothing was written; try {other}finer weights or more calibration text, or accept it with --set gates.FIELD=LIMIT "
        "(gates_int4_kv.FIELD for an INT4 cache)"
    )


def require_toolchain(target: Target) -> None:
    """Raises ToolchainMissing saying how to get what lacks."""
    problem = target.toolchain_problem()
    if problem is not None:
        raise ToolchainMissing(problem)


def _target_json(target: Target, recipe: Recipe, outcome: LowerOutcome) -> dict[str, Any]:
    return {
        "runtime": target.runtime,
        "backend": target.backend,
        "soc": recipe.target.soc,
        "parity": artifact_obtained(target),
        "requirements": outcome.requirements,
    }


def _combined_hash(inputs: dict[str, str]) -> str:
    """One hash for the model: of its files' names and hashes."""
    text = "\n".join(f"{name} {inputs[name]}" for name in sorted(inputs))
    return hashlib.sha256(text.encode()).hexdigest()
