"""Plans of tiny models for the NPU, and the refusals of what it cannot do."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_checkpoint import spec_of

from exporter.decoder.spec import DecoderSpec
from exporter.errors import ExitCode, PlanRefused
from exporter.plan import Plan, check_refusals, make_plan
from exporter.recipe import Recipe, load_recipe
from exporter.targets.base import find_target

QNN = "executorch-qnn"


def recipe(*overrides: str) -> Recipe:
    return load_recipe("android-npu", overrides)


def plan_of(config: dict[str, Any], *overrides: str) -> Plan:
    spec, chosen = spec_of(config), recipe(*overrides)
    return make_plan(spec, chosen, find_target(QNN))


def refusal(spec: DecoderSpec, *overrides: str) -> str:
    """The refusal of a combination: exit code 3, one line, a next step, and a nearest combination."""
    with pytest.raises(PlanRefused) as caught:
        check_refusals(spec, recipe(*overrides), find_target(QNN))
    assert caught.value.exit_code == ExitCode.REFUSED == 3
    assert "\n" not in str(caught.value)
    assert "--set" in caught.value.next_step
    assert "nearest that works: " in caught.value.message
    return caught.value.message
