"""Qualcomm AI Hub as a name on the command line: it answers with what it lacks, or why it cannot measure a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from device_tests import ai_hub
from device_tests.devices.base import DEVICES, Device, HostCommand, Placed, RunnerFiles
from exporter.errors import PlanRefused
from exporter.targets.base import Obtained


class AiHubDevice:
    """`qai-hub:PHONE`. Files and runners do not go there; see `device_tests/ai_hub.py`."""

    obtained = Obtained.ESTIMATED
    on_this_host = False

    def __init__(self, phone: str) -> None:
        self.name = f"qai-hub:{phone}" if phone else "qai-hub"

    def lacks(self) -> str | None:
        return ai_hub.lacks()

    def place(self, artifact: Path, names: Sequence[str], runner: RunnerFiles) -> Placed:
        raise self._refusal()

    def write(self, name: str, text: str) -> str:
        raise self._refusal()

    def command(self, words: Sequence[str]) -> HostCommand:
        raise self._refusal()

    def shell(self, script: str) -> str | None:
        return None

    def answers(self) -> bool:
        return self.lacks() is None

    def clean_up(self) -> None:
        """Nothing was left."""

    def _refusal(self) -> PlanRefused:
        return PlanRefused(
            f"{self.name}: AI Hub profiles graphs of fixed shapes and runs no conversation",
            "profile single graphs with device_tests.ai_hub.profile_graph",
        )


class AiHubKind:
    """Phones of the service, by their names there."""

    needs_runner = False

    def device(self, argument: str) -> Device:
        return AiHubDevice(argument)

    def attached(self) -> list[Device]:
        return [AiHubDevice("")]


DEVICES.add("qai-hub", AiHubKind())
