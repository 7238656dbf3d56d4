"""report.json: every figure with its unit in its name and how it was obtained. Names are stable: add, never rename."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from exporter.plan import Plan
from exporter.progress import StageFigures
from exporter.recipe import Recipe
from exporter.targets.base import NOT_RUN, LowerOutcome, Obtained, Target
from exporter.verify.evaluation import EvaluationSet
from exporter.verify.parity import NEAR_TIE_LOGITS, ParityFigures
from exporter.verify.verification import VerificationResult, describe_gates

SCHEMA_VERSION = 1


def artifact_obtained(target: Target) -> str:
    """How figures of the artifact itself came about on this machine, if at all."""
    return NOT_RUN if _ran_the_graph(target) else target.obtained


def _ran_the_graph(target: Target) -> bool:
    return target.obtained is Obtained.GRAPH


def parity_section(target: Target, result: VerificationResult) -> dict[str, Any]:
    """Artifact against oracle; of an artifact that nothing here runs, the graph that was lowered, under a key of its own."""
    graph = _ran_the_graph(target)
    nothing: dict[str, Any] = {field.name: None for field in fields(ParityFigures)}
    return {
        "obtained": artifact_obtained(target),
        "reference": "TorchOps oracle on the same quantized checkpoint",
        **(nothing if graph else asdict(result.parity)),
        "graph": asdict(result.parity) if graph else None,
        "exact": None if result.exact is None else asdict(result.exact),
        "same_codes": None if result.same_codes is None else asdict(result.same_codes),
        "near_tie_logits": NEAR_TIE_LOGITS,
        "ring_wraps_per_layer": list(result.ring_wraps),
        "gates": describe_gates(result.gates),
        "passed": all(gate.passed for gate in result.gates),
    }


def quality_section(target: Target, evaluation: EvaluationSet, result: VerificationResult) -> dict[str, Any]:
    """Perplexity in three phases on the same tokens, and of the first two on the whole evaluation set."""
    return {
        "obtained": target.obtained,
        "text": evaluation.text,
        "tokens": result.tokens,
        "perplexity_full_precision": evaluation.perplexity_full_precision,
        "perplexity_quantized": result.perplexity_quantized,
        "perplexity_artifact": None if _ran_the_graph(target) else result.perplexity_artifact,
        "perplexity_graph": result.perplexity_artifact if _ran_the_graph(target) else None,
        "all_windows": {
            "tokens": result.tokens_all,
            "perplexity_full_precision": evaluation.perplexity_full_precision_all,
            "perplexity_quantized": result.perplexity_quantized_all,
        },
    }


def export_section(figures: list[StageFigures], peak_rss_bytes: int) -> dict[str, Any]:
    return {
        "obtained": Obtained.MEASURED,
        "wall_s": sum(stage.wall_s for stage in figures),
        "cpu_s": sum(stage.cpu_s for stage in figures),
        "peak_rss_bytes": peak_rss_bytes,
        "stages": [asdict(stage) for stage in figures],
    }


def build_report(
    recipe: Recipe,
    target: Target,
    plan: Plan,
    model_sha256: str,
    outcome: LowerOutcome,
    artifact_bytes: int,
    sections: dict[str, Any],
) -> dict[str, Any]:
    """The whole report of one export."""
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": {"name": recipe.name},
        "model": {"family": plan.family, "parameters": plan.parameters, "sha256": model_sha256},
        "target": {"runtime": target.runtime, "backend": target.backend, "soc": recipe.target.soc},
        "artifact": {
            "obtained": Obtained.MEASURED,
            "bytes": artifact_bytes,
            "weight_bytes": outcome.weight_bytes,
            "tied_embedding_stored_once": plan.tied.stored_once,
            "tied_embedding_extra_bytes": plan.tied.extra_bytes,
            "tied_embedding_reason": plan.tied.reason,
            "delegated_fraction": outcome.delegation.fraction if outcome.delegation else None,
            "delegates_per_method": outcome.delegation.delegates_per_method if outcome.delegation else {},
            **outcome.notes,
        },
        "kv_cache": {
            "obtained": Obtained.MEASURED,
            "bits": plan.kv_bits,
            "bytes_per_token": plan.kv_bytes_per_token,
            "bytes_total": outcome.kv_bytes_total,
            "slots_per_layer": list(outcome.slots_per_layer),
        },
        "recurrent_states": {"obtained": Obtained.MEASURED, "bytes_total": outcome.state_bytes_total},
        **sections,
        "plan": plan.to_json(),
    }


def write_report(report: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
