"""Several targets from one quantized checkpoint, and how far their artifacts agree with each other."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from exporter.errors import PlanRefused
from exporter.folder import OutputFolder
from exporter.manifest import REPORT_FILE
from exporter.pipeline import ExportRequest, export, require_toolchain
from exporter.plan import plan_export
from exporter.progress import StageDisplay
from exporter.recipe import Recipe
from exporter.report.build import SCHEMA_VERSION
from exporter.runtime.rows import map_rows
from exporter.targets.base import Obtained, find_target
from exporter.verify.parity import compare_logits

SHARED_SECTIONS = ("weights", "calibration", "seed", "verify")
"""What decides the quantized weights, and the tokens on which artifacts are compared."""


def export_several(request: ExportRequest, recipes: list[Recipe], display: StageDisplay) -> dict[str, Any]:
    """Exports every recipe into a folder of its name below `request.output`, all or none, and compares the artifacts.

    Raises PlanRefused when the recipes do not share one quantized checkpoint.
    """
    check_shared(recipes)
    output = OutputFolder(request.output, request.force)
    output.check()
    for recipe in recipes:
        plan_export(request.model_folder, recipe, request.text_only)
        require_toolchain(find_target(recipe.target.kind))
    with output as folder:
        reports, logits = {}, {}
        for recipe in recipes:
            display.announce(recipe.name)
            logits[recipe.name] = folder / f"{recipe.name}.npy"
            own = replace(request, recipe=recipe, output=folder / recipe.name)
            reports[recipe.name] = export(own, display, logits[recipe.name])
        report = {
            "schema_version": SCHEMA_VERSION,
            "targets": {name: {"folder": name, "report": f"{name}/{REPORT_FILE}"} for name in reports},
            "cross_target": {"obtained": _obtained(recipes), "pairs": _compare(logits)},
        }
        for path in logits.values():
            path.unlink()
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return {**report, "reports": reports}


def check_shared(recipes: list[Recipe]) -> None:
    """Raises PlanRefused naming the sections in which recipes differ that must not."""
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise PlanRefused(f"a recipe is given twice: {', '.join(names)}", "name every recipe once")
    first = recipes[0].model_dump(mode="json")
    for other in recipes[1:]:
        values = other.model_dump(mode="json")
        for section in SHARED_SECTIONS:
            if values[section] != first[section]:
                differing = _differing(section, first[section], values[section])
                raise PlanRefused(
                    f"recipes {recipes[0].name} and {other.name} do not share one quantized checkpoint: {differing}",
                    "make them equal with --set, which applies to all recipes, or export them one by one",
                )


def _differing(section: str, first: Any, second: Any) -> str:
    if not isinstance(first, dict):
        return f"{section} {first} and {second}"
    return ", ".join(f"{section}.{key} {first[key]} and {second[key]}" for key in first if first[key] != second[key])


def _compare(logits: dict[str, Path]) -> list[dict[str, Any]]:
    """Each pair of artifacts on the same tokens; the first of a pair is the reference."""
    loaded = {name: map_rows(path) for name, path in logits.items()}
    return [
        {"first": first, "second": second, **asdict(compare_logits(loaded[first], loaded[second]))}
        for first, second in itertools.combinations(loaded, 2)
    ]


def _obtained(recipes: list[Recipe]) -> Obtained:
    """A comparison is only as real as its less real side."""
    kinds = {find_target(recipe.target.kind).obtained for recipe in recipes}
    return next(
        kind for kind in (Obtained.GRAPH, Obtained.SIMULATED, Obtained.EMULATED, Obtained.MEASURED) if kind in kinds
    )
