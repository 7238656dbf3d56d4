"""Audits compare what an artifact declares with what the plan promised, and fail by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from exporter.errors import GateFailed
from exporter.plan import Plan, plan_export
from exporter.recipe import load_recipe
from exporter.resources import example_folder
from exporter.targets.base import Delegation, LowerOutcome
from exporter.verify.audit import audit_lowering


@pytest.fixture
def plan() -> Plan:
    return plan_export(example_folder() / "model", load_recipe("android-npu"))


@pytest.fixture
def outcome(plan: Plan) -> LowerOutcome:
    delegation = Delegation(1.0, {"prefill": 1, "decode": 1}, ())
    return LowerOutcome(("model.pte",), 1, delegation, plan.kv_bytes_total, plan.slots_per_layer)


def test_an_artifact_as_planned_passes(plan: Plan, outcome: LowerOutcome) -> None:
    audit_lowering(plan, outcome)


@pytest.mark.parametrize(
    ("delegation", "named"),
    [
        (Delegation(0.99, {"prefill": 1, "decode": 1}, ("decode: aten::add",)), "decode: aten::add"),
        (Delegation(1.0, {"prefill": 2, "decode": 1}, ()), "prefill has 2"),
        (Delegation(1.0, {"prefill": 1, "decode": 0}, ()), "decode has 0"),
    ],
)
def test_incomplete_delegation_fails_by_name(
    plan: Plan, outcome: LowerOutcome, delegation: Delegation, named: str
) -> None:
    with pytest.raises(GateFailed, match=named):
        audit_lowering(plan, replace(outcome, delegation=delegation))


def test_other_cache_bytes_or_slots_fail(plan: Plan, outcome: LowerOutcome) -> None:
    with pytest.raises(GateFailed, match="KV bytes"):
        audit_lowering(plan, replace(outcome, kv_bytes_total=outcome.kv_bytes_total + 1))
    with pytest.raises(GateFailed, match="slots"):
        audit_lowering(plan, replace(outcome, slots_per_layer=(1,) * 6))
