"""Audits that compare what the artifact declares with what the plan promised."""

from __future__ import annotations

from exporter.errors import GateFailed
from exporter.plan import Plan
from exporter.targets.base import Delegation, LowerOutcome
from exporter.verify.verification import VerificationResult


def audit_lowering(plan: Plan, outcome: LowerOutcome) -> None:
    """Delegation, slots and cache bytes as declared by the artifact. Raises GateFailed naming what differs."""
    problems = []
    if outcome.delegation is not None:
        problems += _delegation_problems(outcome.delegation)
    if outcome.slots_per_layer != plan.slots_per_layer:
        problems.append(f"cache slots {list(outcome.slots_per_layer)}, planned {list(plan.slots_per_layer)}")
    if outcome.kv_bytes_total != plan.kv_bytes_total:
        problems.append(f"the artifact declares {outcome.kv_bytes_total} KV bytes, the plan {plan.kv_bytes_total}")
    if outcome.state_bytes_total != plan.state_bytes_total:
        declared, planned = outcome.state_bytes_total, plan.state_bytes_total
        problems.append(f"the artifact declares {declared} bytes of recurrent states, the plan {planned}")
    _raise(problems)


def _delegation_problems(delegation: Delegation) -> list[str]:
    problems = []
    if delegation.operators_outside:
        problems.append(f"operators outside the delegate: {', '.join(delegation.operators_outside)}")
    split = [f"{method} has {count}" for method, count in delegation.delegates_per_method.items() if count != 1]
    if split and delegation.one_per_method:
        problems.append(f"each method must be exactly one delegate: {', '.join(split)}")
    return problems


def audit_run(plan: Plan, result: VerificationResult) -> None:
    """Cache bytes that the running artifact really allocated."""
    if result.kv_bytes != plan.kv_bytes_total:
        _raise([f"the running artifact allocates {result.kv_bytes} KV bytes, the plan says {plan.kv_bytes_total}"])


def _raise(problems: list[str]) -> None:
    if problems:
        raise GateFailed("audit failed: " + "; ".join(problems), "nothing was written; export again with --no-resume")
