"""What an export is judged by: kept beside the quantized weights, so that `verify OUT` needs nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from exporter.errors import CheckpointError

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
