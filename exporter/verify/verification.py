"""Verification of an artifact against its quantized checkpoint, from files alone: the same for an export and for `verify OUT`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from exporter.child import run_child
from exporter.errors import CheckpointError
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.recipe import GatesSection, Recipe
from exporter.runtime.rows import RowFile, map_rows
from exporter.targets.base import VERIFICATION_FOLDER, Target
from exporter.verify.gates import Gate, percent_rise
from exporter.verify.parity import ParityFigures, PerplexityMeter, compare_logits, window_logits
from exporter.verify.same_codes import has_codes

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
    target: Target,
    decoder: QuantizedDecoder,
    recipe: Recipe,
    folder: Path,
    evaluation: EvaluationSet,
    log: Path,
    on_progress: Callable[[float], None],
    logits: Path | None = None,
) -> VerificationResult:
    """Runs the artifact in a child process and meanwhile the oracle here, on the same windows. `logits` keeps what the artifact said."""
    windows = evaluation.windows[: evaluation.artifact_windows]
    scheduled = [
        [window, len(window) - (evaluation.decode_tokens if index == 0 else 0)] for index, window in enumerate(windows)
    ]

    def score(driver: str, output: Path, done: float) -> int:
        """Writes logits of all windows [tokens, V]; returns the bytes of the cache."""
        scored = run_child(
            "exporter.runtime.driver:score_in_child",
            {"driver": driver, "folder": str(folder), "windows": scheduled, "output": str(output)},
            log,
            SCORE_TIME_LIMIT_S,
            lambda event: on_progress(done + float(event["progress"]) / (1 if target.exact_driver is None else 2)),
        )
        return int(scored["kv_bytes"])

    with TemporaryDirectory(dir=log.parent) as folder_of_logits, ThreadPoolExecutor(1) as thread:
        scratch, stop = Path(folder_of_logits), threading.Event()
        oracle = thread.submit(_score_beside, decoder, evaluation, scratch, target.exact_driver is not None, stop)
        output, unrounded = logits or scratch / "artifact_logits.npy", scratch / "exact_logits.npy"
        try:
            kv_bytes = score(target.driver, output, 0.0)
            if target.exact_driver is not None:
                score(target.exact_driver, unrounded, 0.5)
        except BaseException:
            stop.set()
            raise
        expected = oracle.result()
        same_codes = _same_codes(target, decoder, folder, windows[0], log)
        exact = None if expected.exact is None else compare_logits(map_rows(expected.exact), map_rows(unrounded))
        return _compare(decoder, recipe, evaluation, expected, output, kv_bytes, exact, same_codes)


def _same_codes(
    target: Target, decoder: QuantizedDecoder, folder: Path, window: list[int], log: Path
) -> ParityFigures | None:
    if not (target.adopts_codes and has_codes(decoder.kv_format)):
        return None
    arguments = {
        "driver": target.driver,
        "folder": str(folder),
        "quantized": str(folder / VERIFICATION_FOLDER),
        "window": window,
    }
    figures = run_child("exporter.verify.same_codes:compare_in_child", arguments, log, SCORE_TIME_LIMIT_S)
    return ParityFigures(**figures)


@dataclass(frozen=True)
class _OracleScores:
    """Logits of the windows that the artifact runs too, in a file [tokens, V], and where a target has an exact driver those without
    any rounding to 16 bits; and perplexity on those windows and on all."""

    logits: Path
    exact: Path | None
    compared: PerplexityMeter
    every: PerplexityMeter


def _score_beside(*arguments: Any) -> _OracleScores:
    """`_score_oracle` on half of the processors: the child computes meanwhile, and threads that wait for each other would spin."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        return _score_oracle(*arguments)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _score_oracle(
    decoder: QuantizedDecoder, evaluation: EvaluationSet, scratch: Path, exact: bool, stop: threading.Event
) -> _OracleScores:
    """Gives up between two windows once `stop` is set."""
    oracle, compared, every = decoder.oracle(), PerplexityMeter(), PerplexityMeter()
    files = scratch / "oracle_logits.npy", scratch / "exact_oracle_logits.npy"
    with RowFile(files[0]) as rows:
        for index, window in enumerate(evaluation.windows):
            if stop.is_set():
                break
            logits = window_logits(oracle, decoder.spec, window, decoder.chunk)
            every.add(logits, window)
            if index < evaluation.artifact_windows:
                compared.add(logits, window)
                rows.append(logits.numpy())
    if exact:
        oracle = decoder.exact_oracle()
        with RowFile(files[1]) as rows:
            for window in evaluation.windows[: 0 if stop.is_set() else evaluation.artifact_windows]:
                rows.append(window_logits(oracle, decoder.spec, window, decoder.chunk).numpy())
    decoder.weights.release()
    return _OracleScores(files[0], files[1] if exact else None, compared, every)


def _compare(
    decoder: QuantizedDecoder,
    recipe: Recipe,
    evaluation: EvaluationSet,
    oracle: _OracleScores,
    output: Path,
    kv_bytes: int,
    exact: ParityFigures | None,
    same_codes: ParityFigures | None,
) -> VerificationResult:
    expected, found = map_rows(oracle.logits), map_rows(output)
    of_artifact, start = PerplexityMeter(), 0
    for window in evaluation.windows[: evaluation.artifact_windows]:
        of_artifact.add(found[start : start + len(window)], window)
        start += len(window)
    parity, of_oracle, every = compare_logits(expected, found), oracle.compared, oracle.every
    gates = _gates(recipe, evaluation, parity, of_oracle.perplexity, of_artifact.perplexity, every.perplexity)
    if exact is not None:
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
        kv_bytes,
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
