"""What a target is: refusals for the plan, sizes, lowering, and a driver to run what it made."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from exporter.decoder.recurrence import StateSpec
from exporter.decoder.spec import DecoderSpec
from exporter.quantize.formats import KvFormat, ScaleFormat
from exporter.recipe import Recipe
from exporter.registry import Registry

VERIFICATION_FOLDER = "verification"
"""Folder of an export with what only checks need: the quantized checkpoint above all."""

NOT_RUN = "not run (no runtime on this machine)"
"""What report and manifest say of the parity of an artifact that nothing here executes."""


class Obtained(StrEnum):
    """How a figure came about. Of the graph: PyTorch ran what was lowered, and nothing ran the artifact."""

    MEASURED = "measured"
    EMULATED = "emulated"
    SIMULATED = "simulated"
    ESTIMATED = "estimated"
    GRAPH = "traced graph"


@dataclass(frozen=True)
class Refusal:
    """A combination that the target cannot carry, why, and the nearest one that it can."""

    reason: str
    nearest: str

    def __str__(self) -> str:
        return f"{self.reason}; nearest that works: {self.nearest}"


@dataclass(frozen=True)
class TiedStorage:
    """Whether a tied table is stored once in the artifact; if not, why and what it costs."""

    stored_once: bool
    extra_bytes: int = 0
    reason: str = ""


@dataclass(frozen=True)
class LowerRequest:
    """Paths and settings of one lowering. `artifact` is what ships; `verification` holds what only checks need."""

    spec: DecoderSpec
    recipe: Recipe
    quantized: Path
    calibration_windows: list[list[int]]
    artifact: Path
    verification: Path
    logs: Path


@dataclass(frozen=True)
class Delegation:
    """Read back from the artifact: the share of operators inside delegates, delegates per method, and operators outside that belong
    inside. `one_per_method`: the backend takes a method as a whole, so that a second delegate means that something split it."""

    fraction: float
    delegates_per_method: dict[str, int]
    operators_outside: tuple[str, ...]
    one_per_method: bool = True


@dataclass(frozen=True)
class LowerOutcome:
    """What a lowering made: the files that an app ships, bytes of weights, delegation where the runtime delegates, KV memory and recurrent
    states as the artifact declares them, figures of the target's own, and what a runtime must offer (for the manifest)."""

    shipped_files: tuple[str, ...]
    weight_bytes: int
    delegation: Delegation | None
    kv_bytes_total: int
    slots_per_layer: tuple[int, ...]
    notes: dict[str, Any] = field(default_factory=dict)
    requirements: dict[str, Any] = field(default_factory=dict)
    state_bytes_total: int = 0


class Target(Protocol):
    """One runtime and backend."""

    runtime: str
    backend: str
    obtained: Obtained
    """How the figures of a run on this machine come about."""

    def kv_format(self, recipe: Recipe) -> KvFormat:
        """The codec that the recipe's `kv_cache` section means on this target."""

    def slot_multiple(self, recipe: Recipe) -> int:
        """Cache slots are rounded up to this multiple, or to the whole context where that is smaller."""

    def state_bytes(self, state: StateSpec) -> int:
        """Bytes of one state of a recurrent layer as the artifact holds it."""

    def refusals(self, spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
        """Everything that stands in the way, found without reading a weight."""

    def stored_scales(self, chosen: ScaleFormat) -> ScaleFormat:
        """How the artifact stores scales that were chosen in a format."""

    def tied_storage(self, spec: DecoderSpec, recipe: Recipe) -> TiedStorage:
        """How the artifact stores a tied table."""

    def remarks(self, spec: DecoderSpec, recipe: Recipe) -> list[str]:
        """What a user should know about this combination although it works."""

    def toolchain_problem(self) -> str | None:
        """None when everything needed is installed, else what is missing and how to get it."""

    def lower(self, request: LowerRequest) -> LowerOutcome:
        """Builds the artifact. Raises GateFailed when an operator stays outside the delegate."""

    holds_palettes: bool
    """Whether it multiplies by palettes (`weights.palette_rows`)."""

    driver: str
    """`module:function(folder) -> Driver`, called in a child process."""

    lowering_bytes_per_weight: int
    """What its lowering takes in memory, measured."""

    adopts_codes: bool
    """Whether its driver can be given the oracle's cache (`verify.same_codes`)."""

    exact_driver: str | None
    """The same for an artifact that can also be run with nothing rounded to 16 bits; what then differs from an oracle without that
    rounding is a fault of the graph, however small."""


TARGETS: Registry[Target] = Registry("target")


def all_targets() -> Registry[Target]:
    """Every target: each module `target` below this package registers itself when it is imported. No other package is imported beside
    those that hold one."""
    package = sys.modules[__package__]
    for folder in map(Path, package.__path__):
        for file in sorted(folder.rglob("target.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            importlib.import_module(".".join((package.__name__, *parts)))
    return TARGETS


def find_target(kind: str) -> Target:
    """The target of a recipe. Raises UsageError naming the nearest."""
    return all_targets().get(kind)
