"""What the artifact and the oracle say about the same windows: the artifact in a child process, the oracle here, meanwhile. Logits lie in
files [tokens, V]."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from exporter.child import run_child
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.runtime.rows import RowFile
from exporter.targets.base import Target
from exporter.verify.evaluation import EvaluationSet
from exporter.verify.parity import PerplexityMeter, window_logits

SCORE_TIME_LIMIT_S = 7200.0


@dataclass(frozen=True)
class OracleScores:
    """Logits of the windows that the artifact runs too, and where a target has an exact driver those without any rounding to 16 bits;
    perplexity on those windows and on all."""

    logits: Path
    exact: Path | None
    compared: PerplexityMeter
    every: PerplexityMeter


@dataclass(frozen=True)
class ArtifactScores:
    """The same of the artifact, and the bytes of its cache."""

    logits: Path
    exact: Path | None
    kv_bytes: int


@dataclass(frozen=True)
class ArtifactRun:
    """How to run an artifact: its target, its folder, and where the child writes its log."""

    target: Target
    folder: Path
    log: Path
    on_progress: Callable[[float], None]

    def score(self, evaluation: EvaluationSet, scratch: Path, logits: Path | None) -> ArtifactScores:
        """Logits go to `logits` if given."""
        output = logits or scratch / "artifact_logits.npy"
        kv_bytes = self._score(self.target.driver, evaluation, output, 0.0)
        if self.target.exact_driver is None:
            return ArtifactScores(output, None, kv_bytes)
        unrounded = scratch / "exact_logits.npy"
        self._score(self.target.exact_driver, evaluation, unrounded, 0.5)
        return ArtifactScores(output, unrounded, kv_bytes)

    def _score(self, driver: str, evaluation: EvaluationSet, output: Path, done: float) -> int:
        windows = evaluation.windows[: evaluation.artifact_windows]
        one_by_one = [evaluation.decode_tokens, *[0] * len(windows)]  # of the first window, the last tokens
        scheduled = [[window, len(window) - decoded] for window, decoded in zip(windows, one_by_one)]
        share = 1.0 if self.target.exact_driver is None else 0.5
        scored = run_child(
            "exporter.runtime.driver:score_in_child",
            {"driver": driver, "folder": str(self.folder), "windows": scheduled, "output": str(output)},
            self.log,
            SCORE_TIME_LIMIT_S,
            lambda event: self.on_progress(done + share * float(event["progress"])),
        )
        return int(scored["kv_bytes"])


def score_both(
    run: ArtifactRun, decoder: QuantizedDecoder, evaluation: EvaluationSet, scratch: Path, logits: Path | None = None
) -> tuple[OracleScores, ArtifactScores]:
    """The oracle gives up when the artifact fails."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        exact = run.target.exact_driver is not None
        oracle = thread.submit(_score_beside, decoder, evaluation, scratch, exact, stop)
        try:
            artifact = run.score(evaluation, scratch, logits)
        except BaseException:
            stop.set()
            raise
        return oracle.result(), artifact


def _score_beside(*arguments: Any) -> OracleScores:
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
) -> OracleScores:
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
            del logits  # else they would lie beside those of the next window, which exist twice already
    if exact:
        oracle = decoder.exact_oracle()
        with RowFile(files[1]) as rows:
            for window in evaluation.windows[: 0 if stop.is_set() else evaluation.artifact_windows]:
                rows.append(window_logits(oracle, decoder.spec, window, decoder.chunk).numpy())
    decoder.weights.release()
    return OracleScores(files[0], files[1] if exact else None, compared, every)
