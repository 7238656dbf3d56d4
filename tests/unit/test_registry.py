"""The registry: lookups, collisions, and the hint for an unknown name."""

from __future__ import annotations

import pytest

from exporter.errors import ExitCode, UsageError
from exporter.registry import Registry, did_you_mean


@pytest.fixture
def animals() -> Registry[int]:
    registry: Registry[int] = Registry("animal")
    registry.add("zebra", 1)
    registry.add("badger", 2)
    return registry


def test_add_returns_the_entry_and_get_finds_it(animals: Registry[int]) -> None:
    assert animals.add("otter", 3) == 3
    assert animals.get("otter") == 3


def test_names_and_iteration_are_sorted(animals: Registry[int]) -> None:
    assert animals.names() == ["badger", "zebra"]
    assert list(animals) == ["badger", "zebra"]


def test_membership_is_by_exact_name(animals: Registry[int]) -> None:
    assert "zebra" in animals
    assert "Zebra" not in animals


def test_a_second_entry_of_the_same_name_is_a_programming_error(animals: Registry[int]) -> None:
    with pytest.raises(ValueError, match="animal 'zebra' is registered twice"):
        animals.add("zebra", 9)
    assert animals.get("zebra") == 1


def test_an_unknown_name_gets_the_nearest_and_the_list_of_all(animals: Registry[int]) -> None:
    with pytest.raises(UsageError) as caught:
        animals.get("zebras")
    assert str(caught.value) == "unknown animal 'zebras'; did you mean 'zebra'? available: badger, zebra"
    assert caught.value.exit_code == ExitCode.USAGE


def test_nothing_is_guessed_when_no_name_is_near() -> None:
    assert did_you_mean("quux", ["badger", "zebra"]) == "available: badger, zebra"


def test_the_hint_takes_the_closest_of_several_near_names() -> None:
    assert did_you_mean("SM8651", ["SM8450", "SM8650", "SM8750"]).startswith("did you mean 'SM8650'?")
