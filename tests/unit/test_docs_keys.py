"""Keys of recipe, report and manifest: those that are documented are those that are written."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest
from bench_cases import measured, measured_by_a_tool
from doc_pages import REPORT_PAGE, REPOSITORY, WRITTEN, code_spans, page_name

from exporter.recipe import load_recipe

FILE_ENDINGS = (
    ".onnx",
    ".gguf",
    ".mlpackage",
    ".mlmodel",
    ".bin",
    ".data",
    ".pte",
    ".py",
    ".json",
    ".yaml",
    ".md",
    ".txt",
    ".safetensors",
)


@functools.cache
def example_report() -> dict[str, Any]:
    """A report with every key, without an export."""
    from exporter.plan import plan_export
    from exporter.progress import StageFigures
    from exporter.report.build import build_report, export_section, parity_section, quality_section
    from exporter.report.latency import TokenCheck, latency_section
    from exporter.report.official import official_section
    from exporter.targets.base import Delegation, LowerOutcome, find_target
    from exporter.verify.evaluation import EvaluationSet
    from exporter.verify.gates import Gate
    from exporter.verify.parity import ParityFigures
    from exporter.verify.verification import VerificationResult

    def zeros(kind: Any, **given: Any) -> Any:
        return kind(**{field.name: given.get(field.name, 0) for field in dataclasses.fields(kind)})

    recipe = load_recipe("android-npu", ("kv_cache.bits=4",))
    target = find_target(recipe.target.kind)
    plan = plan_export(REPOSITORY / "examples" / "model", recipe)
    result = zeros(
        VerificationResult,
        parity=zeros(ParityFigures),
        exact=zeros(ParityFigures),
        same_codes=zeros(ParityFigures),
        ring_wraps=(0.0,),
        gates=[Gate("parity.mean_kl", 0.0, None)],
    )
    evaluation = EvaluationSet("text.txt", [], 0, 0, 1.0, 1.0)
    outcome = LowerOutcome((), 0, Delegation(1.0, {"prefill": 1, "decode": 1}, ()), 0, plan.slots_per_layer)
    sections = {
        "parity": parity_section(target, result) | {"graph": dataclasses.asdict(zeros(ParityFigures))},
        "quality": quality_section(target, evaluation, result),
        "export": export_section([StageFigures("plan", 0.0, 0.0)], 0),
    }
    report = build_report(recipe, target, plan, "", outcome, 0, sections)
    graph = parity_section(find_target("executorch-vulkan"), result)["graph"]
    report["parity"]["graph"] = graph
    section = latency_section(measured(), 1, TokenCheck("oracle", 1, True, 0), None)
    official = official_section(measured_by_a_tool()) | {"conditions": None}  # those of `latency`
    return {**report, "latency": section, "latency_devices": None, "official_latency": [official]}


def flat_keys(value: Any, prefix: str = "") -> set[str]:
    """Dotted keys of all leaves; `[]` stands for each entry of a list."""
    if isinstance(value, dict):
        return {key for name, part in value.items() for key in flat_keys(part, f"{prefix}.{name}".lstrip("."))}
    if isinstance(value, list | tuple):
        return {key for part in value for key in flat_keys(part, f"{prefix}[]")}
    return {prefix}


def documented_keys(text: str) -> set[str]:
    """Keys in the first column of every table."""
    cells = re.findall(r"^\| (`[^|]+`) \|", text, re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


def target_notes() -> set[str]:
    """Names of the figures that targets add to the section `artifact`."""
    from exporter.targets.coreml.decoder_audit import CoreMlFigures
    from exporter.targets.executorch.qnn.lower import QnnFigures
    from exporter.targets.executorch.vulkan.lower import VulkanFigures
    from exporter.targets.onnx.lower import OnnxFigures

    return {
        field.name
        for kind in (QnnFigures, OnnxFigures, CoreMlFigures, VulkanFigures)
        for field in dataclasses.fields(kind)
    }


@functools.cache
def known_keys() -> set[str]:
    """Every key of recipe and report, and every section that holds some."""
    recipe = flat_keys(load_recipe("android-npu").model_dump(mode="json"))
    keys = recipe | flat_keys(example_report()) | documented_keys(REPORT_PAGE.read_text(encoding="utf-8"))
    return keys | {key[: match.start()] for key in keys for match in re.finditer(r"[.\[]", key)}


@pytest.mark.parametrize("path", WRITTEN, ids=page_name)
def test_keys_of_recipe_and_report_are_real(path: Path) -> None:
    known = known_keys()
    sections = {key.split(".")[0] for key in known if "." in key}
    spans = [span.partition("=")[0] for span in code_spans(path.read_text(encoding="utf-8"))]
    dotted = [
        span for span in spans if re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)+", span) and not span.endswith(FILE_ENDINGS)
    ]
    assert [span for span in dotted if span.split(".")[0] in sections and span not in known] == []


def test_every_key_of_the_report_is_documented_and_no_other() -> None:
    text = REPORT_PAGE.read_text(encoding="utf-8").split("## report.json")[1].split("## manifest.json")[0]
    documented, found, notes = documented_keys(text), flat_keys(example_report()), target_notes()
    assert found - documented == set()
    extra = {key.split(".")[1] for key in documented - found if key.startswith("artifact.")}
    assert extra == notes
    assert [key for key in documented - found if not key.startswith("artifact.")] == []


def test_every_key_of_the_manifest_is_documented_and_no_other(tmp_path: Path) -> None:
    from exporter.manifest import read_manifest, write_manifest

    write_manifest(tmp_path, load_recipe("android-npu"), {}, {}, "")
    text = REPORT_PAGE.read_text(encoding="utf-8").split("## manifest.json")[1]
    assert documented_keys(text) == set(read_manifest(tmp_path))
