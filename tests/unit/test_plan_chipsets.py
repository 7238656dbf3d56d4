"""Chipsets: the ones that ExecuTorch lists are accepted, any other name is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_checkpoint import spec_of, tiny_config, write_config
from tiny_plans import QNN, recipe, refusal

from exporter.errors import PlanRefused
from exporter.plan import check_refusals, plan_export
from exporter.targets.base import find_target
from exporter.targets.executorch.qnn import sdk

CHIPSETS = sdk.chipset_names()


def test_a_chipset_that_resembles_none_gets_the_list() -> None:
    message = refusal(spec_of(tiny_config()), "target.soc=pixel")
    assert "one of these" in message
    assert all(name in message for name in CHIPSETS)


@pytest.mark.parametrize("soc", CHIPSETS)
def test_every_chipset_of_executorch_is_accepted(tmp_path: Path, soc: str) -> None:
    write_config(tmp_path, tiny_config())
    assert plan_export(tmp_path, recipe(f"target.soc={soc}")).weight_bytes > 0


def test_the_chipsets_are_those_that_executorch_lists() -> None:
    assert {"SM8550", "SM8650", "SM8750"} <= set(CHIPSETS)
    assert "UNKNOWN_SM" not in CHIPSETS
    assert len(CHIPSETS) == len(set(CHIPSETS)) > 15


@pytest.mark.parametrize("soc", ["", "sm8650", "SM8650 ", "UNKNOWN_SM"])
def test_a_chipset_must_be_named_exactly(soc: str) -> None:
    spec = spec_of(tiny_config())
    with pytest.raises(PlanRefused, match="unknown to ExecuTorch"):
        check_refusals(spec, recipe(f"target.soc='{soc}'"), find_target(QNN))


def test_without_executorch_no_chipset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "chipset_names", lambda: [])
    assert check_refusals(spec_of(tiny_config()), recipe("target.soc=SM1"), find_target(QNN)) is None
