"""Verification of an artifact against its quantized checkpoint, from files alone: the same for an export and for `verify OUT`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.child import run_child
from exporter.errors import CheckpointError
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.recipe import GatesSection, Recipe
from exporter.targets.base import Target
from exporter.verify.gates import Gate, percent_rise
from exporter.verify.parity import ParityFigures, PerplexityMeter, compare_logits, window_logits

SCORE_TIME_LIMIT_S = 7200.0
EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class EvaluationSet:
    """Token windows of the evaluation text. The artifact runs the first `artifact_windows`; quality uses all."""

    text: str
    windows: list[list[int]]
    artifact_windows: int
    decode_tokens: int
    perplexity_full_precision: float
    perplexity_full_precision_all: float

    def save(self, folder: Path) -> None:
        (folder / EVALUATION_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> EvaluationSet:
        try:
            return EvaluationSet(**json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError, TypeError) as fault:
            raise CheckpointError(f"{folder / EVALUATION_FILE}: not readable ({fault})", "export again") from None


@dataclass(frozen=True)
class VerificationResult:
    """Parity and quality figures, and how every gate fared. `exact` is parity with nothing rounded to 16 bits, where an artifact can
    run so."""

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


@torch.no_grad()
def verify_artifact(
    target: Target,
    decoder: QuantizedDecoder,
    recipe: Recipe,
    folder: Path,
    evaluation: EvaluationSet,
    log: Path,
    on_progress: Callable[[float], None],
    logits: Path | None = None,
) -> VerificationResult:
    """Runs the artifact in a child process and the oracle here, on the same windows. `logits` keeps what the artifact said."""
    windows = evaluation.windows[: evaluation.artifact_windows]
    scheduled = [
        [window, len(window) - (evaluation.decode_tokens if index == 0 else 0)] for index, window in enumerate(windows)
    ]
    drivers = [driver for driver in (target.driver, target.exact_driver) if driver is not None]

    def score(index: int, output: Path) -> tuple[torch.Tensor, int]:
        """Logits of all windows [tokens, V], and the bytes of the cache."""
        scored = run_child(
            "exporter.runtime.driver:score_in_child",
            {"driver": drivers[index], "folder": str(folder), "windows": scheduled, "output": str(output)},
            log,
            SCORE_TIME_LIMIT_S,
            lambda event: on_progress((index + float(event["progress"])) / len(drivers)),
        )
        found = torch.from_numpy(np.load(output))
        if output != logits:
            output.unlink()
        return found, int(scored["kv_bytes"])

    artifact, kv_bytes = score(0, logits or log.parent / "artifact_logits.npy")
    exact = None
    if len(drivers) > 1:
        unrounded, _ = score(1, log.parent / "exact_logits.npy")
        oracle = decoder.exact_oracle()
        expected = [window_logits(oracle, decoder.spec, window, decoder.chunk) for window in windows]
        exact = compare_logits(torch.cat(expected), unrounded)
    return _compare(decoder, recipe, evaluation, artifact, kv_bytes, exact)


def _compare(
    decoder: QuantizedDecoder,
    recipe: Recipe,
    evaluation: EvaluationSet,
    artifact: torch.Tensor,
    kv_bytes: int,
    exact: ParityFigures | None,
) -> VerificationResult:
    windows = evaluation.windows[: evaluation.artifact_windows]
    oracle, every = decoder.oracle(), PerplexityMeter()
    of_oracle, of_artifact, expected, start = PerplexityMeter(), PerplexityMeter(), [], 0
    for index, window in enumerate(evaluation.windows):
        logits = window_logits(oracle, decoder.spec, window, decoder.chunk)
        every.add(logits, window)
        if index < len(windows):
            of_oracle.add(logits, window)
            of_artifact.add(artifact[start : start + len(window)], window)
            expected.append(logits)
            start += len(window)
    parity = compare_logits(torch.cat(expected), artifact)
    gates = _gates(recipe, evaluation, parity, of_oracle.perplexity, of_artifact.perplexity, every.perplexity)
    if exact is not None:
        gates += _exact_gates(recipe, exact)
    return VerificationResult(
        parity,
        exact,
        of_oracle.perplexity,
        every.perplexity,
        of_artifact.perplexity,
        of_oracle.tokens,
        every.tokens,
        kv_bytes,
        tuple(len(windows[0]) / layer.ring if layer.window else 0.0 for layer in decoder.layout),
        gates,
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


def _limits(recipe: Recipe) -> GatesSection:
    return recipe.gates_int4_kv if recipe.kv_cache.bits == 4 else recipe.gates


def describe_gates(gates: list[Gate]) -> list[dict[str, Any]]:
    return [{"name": gate.name, "value": gate.value, "limit": gate.limit, "passed": gate.passed} for gate in gates]
