"""Verification of an artifact against its quantized checkpoint, from files alone: the same for an export and for `verify OUT`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from exporter.child import run_child
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.recipe import GatesSection, Recipe
from exporter.runtime.rows import map_rows
from exporter.targets.base import VERIFICATION_FOLDER
from exporter.verify.evaluation import EvaluationSet
from exporter.verify.gates import Gate, percent_rise
from exporter.verify.parity import ParityFigures, PerplexityMeter, compare_logits
from exporter.verify.same_codes import has_codes
from exporter.verify.scores import SCORE_TIME_LIMIT_S, ArtifactRun, ArtifactScores, OracleScores, score_both


@dataclass(frozen=True)
class VerificationResult:
    """Parity and quality figures, and how every gate fared. `exact` is parity with nothing rounded to 16 bits, where an artifact can
    run so; `same_codes` is parity with the oracle's codes in a coded cache, where an artifact can take them."""

    parity: ParityFigures
    exact: ParityFigures | None
    perplexity_quantized: float
    perplexity_quantized_all: float
    perplexity_artifact: float
    tokens: int
    tokens_all: int
    kv_bytes: int
    ring_wraps: tuple[float, ...]
    gates: list[Gate]
    same_codes: ParityFigures | None = None


@torch.no_grad()
def verify_artifact(
    run: ArtifactRun, decoder: QuantizedDecoder, recipe: Recipe, evaluation: EvaluationSet, logits: Path | None = None
) -> VerificationResult:
    """Compares the artifact with the oracle on the same windows. `logits` keeps what the artifact said."""
    with TemporaryDirectory(dir=run.log.parent) as scratch:
        oracle, artifact = score_both(run, decoder, evaluation, Path(scratch), logits)
        same_codes = _same_codes(run, decoder, evaluation.windows[0])
        return _compare(decoder, recipe, evaluation, oracle, artifact, same_codes)


def _same_codes(run: ArtifactRun, decoder: QuantizedDecoder, window: list[int]) -> ParityFigures | None:
    if not (run.target.adopts_codes and has_codes(decoder.kv_format)):
        return None
    arguments = {
        "driver": run.target.driver,
        "folder": str(run.folder),
        "quantized": str(run.folder / VERIFICATION_FOLDER),
        "window": window,
    }
    figures = run_child("exporter.verify.same_codes:compare_in_child", arguments, run.log, SCORE_TIME_LIMIT_S)
    return ParityFigures(**figures)


def _compare(
    decoder: QuantizedDecoder,
    recipe: Recipe,
    evaluation: EvaluationSet,
    oracle: OracleScores,
    artifact: ArtifactScores,
    same_codes: ParityFigures | None,
) -> VerificationResult:
    found, of_artifact, start = map_rows(artifact.logits), PerplexityMeter(), 0
    for window in evaluation.windows[: evaluation.artifact_windows]:
        of_artifact.add(found[start : start + len(window)], window)
        start += len(window)
    parity, of_oracle, every = compare_logits(map_rows(oracle.logits), found), oracle.compared, oracle.every
    gates, exact = (
        _gates(recipe, evaluation, parity, of_oracle.perplexity, of_artifact.perplexity, every.perplexity),
        None,
    )
    if oracle.exact is not None and artifact.exact is not None:
        exact = compare_logits(map_rows(oracle.exact), map_rows(artifact.exact))
        gates += _exact_gates(recipe, exact)
    if same_codes is not None:
        gates += _same_codes_gates(recipe, same_codes)
    return VerificationResult(
        parity,
        exact,
        of_oracle.perplexity,
        every.perplexity,
        of_artifact.perplexity,
        of_oracle.tokens,
        every.tokens,
        artifact.kv_bytes,
        tuple(len(evaluation.windows[0]) / layer.ring if layer.window else 0.0 for layer in decoder.layout),
        gates,
        same_codes,
    )


def _gates(
    recipe: Recipe,
    evaluation: EvaluationSet,
    parity: ParityFigures,
    quantized: float,
    artifact: float,
    quantized_all: float,
) -> list[Gate]:
    limits = _limits(recipe)
    return [
        Gate("parity.top1_agreement", parity.top1_agreement, limits.top1_agreement_min, smallest=True),
        Gate("parity.mean_kl", parity.mean_kl, limits.mean_kl_max),
        Gate(
            "quality.perplexity_artifact rise over oracle, percent",
            percent_rise(artifact, quantized),
            limits.perplexity_artifact_percent_max,
        ),
        Gate(
            "quality.perplexity_quantized rise over full precision, percent",
            percent_rise(quantized_all, evaluation.perplexity_full_precision_all),
            limits.perplexity_quantized_percent_max,
        ),
    ]


def _exact_gates(recipe: Recipe, exact: ParityFigures) -> list[Gate]:
    limits = _limits(recipe)
    return [
        Gate("parity.exact.max_abs_error", exact.max_abs_error, limits.exact_max_abs_error_max),
        Gate("parity.exact.mean_kl", exact.mean_kl, limits.exact_mean_kl_max),
    ]


def _same_codes_gates(recipe: Recipe, figures: ParityFigures) -> list[Gate]:
    """With equal codes a coded cache has no excuse: the limits are those of any other."""
    return [
        Gate(
            "parity.same_codes.top1_agreement", figures.top1_agreement, recipe.gates.top1_agreement_min, smallest=True
        ),
        Gate("parity.same_codes.mean_kl", figures.mean_kl, recipe.gates.mean_kl_max),
    ]


def _limits(recipe: Recipe) -> GatesSection:
    return recipe.gates_int4_kv if recipe.kv_cache.bits == 4 else recipe.gates


def describe_gates(gates: list[Gate]) -> list[dict[str, Any]]:
    return [{"name": gate.name, "value": gate.value, "limit": gate.limit, "passed": gate.passed} for gate in gates]
