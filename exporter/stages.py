"""The stages between a loaded checkpoint and a verified artifact. What a stage makes is kept under the hash of what it consumed, so
that a second run, or a second target of the same run, resumes from it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from exporter.checkpoint.checkpoint import COMPANION_FILES, Checkpoint
from exporter.decoder.weights import DecoderWeights
from exporter.folder import link_or_copy
from exporter.manifest import tool_versions
from exporter.plan import cache_settings, recipe_layout, weight_settings
from exporter.progress import StageDisplay
from exporter.quantize.calibration import KvCalibrator
from exporter.quantize.quantized_checkpoint import (
    WEIGHTS_DESCRIPTION,
    WEIGHTS_FILE,
    QuantizedDecoder,
    load_quantized,
    save_cache,
    save_weights,
)
from exporter.quantize.quantizer import quantize_decoder
from exporter.recipe import Recipe
from exporter.stage_cache import StageCache, content_key
from exporter.targets.base import VERIFICATION_FOLDER, LowerOutcome, LowerRequest, Target
from exporter.texts import Texts
from exporter.verify.evaluation import EvaluationSet
from exporter.verify.parity import layerwise_perplexities
from exporter.verify.scores import ArtifactRun
from exporter.verify.verification import VerificationResult, verify_artifact

OUTCOME_FILE, STATISTICS_FILE, SUMS_FILE = "outcome.json", "kv_statistics.safetensors", "sums.json"
NOT_LOWERED = {"name", "description", "verify", "gates", "gates_int4_kv", "device"}
"""Sections that no target reads while it lowers."""
RESUMED = "resumed from an earlier run"


@dataclass(frozen=True)
class Run:
    """What all stages of one target's export share."""

    recipe: Recipe
    target: Target
    checkpoint: Checkpoint
    texts: Texts
    evaluation_name: str
    inputs: dict[str, str]
    cache: StageCache
    logs: Path
    display: StageDisplay

    def weight_hashes(self) -> dict[str, str]:
        """Hashes of the inputs that decide a number of the model."""
        return {name: digest for name, digest in self.inputs.items() if name.endswith((".safetensors", "config.json"))}


def quantize(run: Run) -> Path:
    """Weights, and statistics of keys and values; the same for every target."""
    recipe, spec = run.recipe, run.checkpoint.spec
    key = content_key(
        {
            "inputs": run.weight_hashes(),
            "spec": asdict(run.checkpoint.spec),
            "weights": recipe.weights.model_dump(mode="json"),
            "text": run.texts.calibration,
            "seed": recipe.seed,
            "torch": torch.__version__,
        }
    )

    def write(folder: Path) -> None:
        torch.manual_seed(recipe.seed)
        with run.display.stage("quantize") as stage:
            settings, listener = weight_settings(recipe), KvCalibrator(spec)
            weights = quantize_decoder(
                spec,
                run.checkpoint,
                settings,
                run.texts.calibration,
                listener.observe,
                lambda done, total: stage.advance(done / total),
            )
            save_weights(spec, weights, folder)
            listener.save(folder / STATISTICS_FILE)
            rows = settings.palette_rows
            grouped = f"palettes of {rows} rows" if rows else f"groups of {settings.group_size}"
            stage.note = f"{settings.method.value}, {grouped}"

    return _produced(run, "quantize", key, write)


def reference(run: Run) -> list[float]:
    """Summed negative log-likelihood of each evaluation window in full precision."""
    key = content_key(
        {
            "inputs": run.weight_hashes(),
            "spec": asdict(run.checkpoint.spec),
            "text": run.texts.evaluation,
            "torch": torch.__version__,
        }
    )

    def write(folder: Path) -> None:
        with run.display.stage("reference") as stage:
            sums = layerwise_perplexities(run.checkpoint.spec, run.checkpoint, run.texts.evaluation)
            (folder / SUMS_FILE).write_text(json.dumps(sums), encoding="utf-8")
            stage.note = "full-precision perplexity"

    found: list[float] = json.loads((_produced(run, "reference", key, write) / SUMS_FILE).read_text(encoding="utf-8"))
    return found


def lower(run: Run, quantized: Path) -> tuple[Path, LowerOutcome]:
    """The target's artifact, and the quantized decoder with its cache as this target holds it."""
    recipe, target, spec = run.recipe, run.target, run.checkpoint.spec
    windows, settings = run.texts.activations(recipe), cache_settings(spec, recipe)
    layout, kv_format = recipe_layout(spec, recipe, target), target.kv_format(recipe)
    key = content_key(
        {
            "quantized": quantized.name,
            "recipe": recipe.model_dump(mode="json", exclude=NOT_LOWERED),
            "cache": [kv_format, layout, settings],
            "windows": windows,
            "tools": tool_versions(),
        }
    )

    def write(folder: Path) -> None:
        with run.display.stage("lower", run.logs / "lower.log") as stage:
            verification = folder / VERIFICATION_FOLDER
            verification.mkdir()
            constants = KvCalibrator.load(spec, quantized / STATISTICS_FILE).constants(kv_format)
            for name in (WEIGHTS_FILE, WEIGHTS_DESCRIPTION):
                link_or_copy(quantized / name, verification / name)
            weights = DecoderWeights({}, {})  # theirs is the half that is linked
            settled = (layout, kv_format, constants, settings.chunk, settings.context)
            save_cache(QuantizedDecoder(spec, weights, *settled), verification)
            outcome = target.lower(LowerRequest(spec, recipe, verification, windows, folder, verification, run.logs))
            stage.note = f"{target.runtime}, {target.backend}"
            (folder / OUTCOME_FILE).write_text(json.dumps(asdict(outcome)), encoding="utf-8")

    folder = _produced(run, "lower", key, write)
    return folder, TypeAdapter(LowerOutcome).validate_json((folder / OUTCOME_FILE).read_bytes())


def assemble(run: Run, lowered: Path, folder: Path) -> None:
    """Copies the lowered files and the checkpoint's companions into the output. What only `verify` reads is linked: nobody edits it."""
    shutil.copytree(
        lowered, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(OUTCOME_FILE, VERIFICATION_FOLDER)
    )
    shutil.copytree(lowered / VERIFICATION_FOLDER, folder / VERIFICATION_FOLDER, copy_function=link_or_copy)
    for name in (*COMPANION_FILES, "config.json"):
        if (run.checkpoint.folder / name).is_file():
            shutil.copyfile(run.checkpoint.folder / name, folder / name)


def verify(
    run: Run, folder: Path, sums: list[float], logits: Path | None = None
) -> tuple[VerificationResult, EvaluationSet]:
    """Runs the assembled artifact against the oracle."""
    recipe, windows = run.recipe, run.texts.evaluation
    per_window, few = recipe.verify.window - 1, min(recipe.verify.windows, len(windows))
    evaluation = EvaluationSet(
        run.evaluation_name,
        windows,
        few,
        recipe.verify.decode_tokens,
        math.exp(sum(sums[:few]) / (few * per_window)),
        math.exp(sum(sums) / (len(sums) * per_window)),
    )
    log = run.logs / "verify.log"
    with run.display.stage("verify", log) as stage:
        decoder = load_quantized(folder / VERIFICATION_FOLDER)
        artifact = ArtifactRun(run.target, folder, log, stage.advance)
        result = verify_artifact(artifact, decoder, recipe, evaluation, logits)
        stage.note = f"top-1 {result.parity.top1_agreement:.4f} over {result.parity.tokens} tokens"
    return result, evaluation


def _produced(run: Run, stage: str, key: str, write: Callable[[Path], None]) -> Path:
    folder, resumed = run.cache.produce(stage, key, write)
    if resumed:
        with run.display.stage(stage) as shown:
            shown.note = RESUMED
    return folder
