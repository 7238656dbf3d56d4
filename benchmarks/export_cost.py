"""What an export costs: processor time of every stage, and memory beside what the plan said, on a random-weight checkpoint of a
well-known shape.

    python -m benchmarks.export_cost [--recipe ios] [--shape llama-1b] [--set calibration.tokens=2048 ...]

Random weights have no preferred next token, so gates on agreement and perplexity say nothing and are switched off; the simulator
runs one short window only, because simulating 135 M parameters costs seconds per token. Quantization runs in full.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.shapes import SHAPES, write_random_checkpoint

SETTINGS = (
    "verify.windows=1",
    "verify.window=32",
    "verify.decode_tokens=1",
    "verify.quality_windows=4",
    "gates.top1_agreement_min=null",
    "gates.mean_kl_max=null",
    "gates.perplexity_artifact_percent_max=null",
    "gates.perplexity_quantized_percent_max=null",
)
TARGET_CPU_S, TARGET_PEAK_BYTES = 150.0, 3e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="android-npu")
    parser.add_argument("--shape", default="smollm2-135m", choices=SHAPES)
    arguments, others = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, output = Path(scratch) / "model", Path(scratch) / "out"
        _elsewhere(write_random_checkpoint, SHAPES[arguments.shape], model)
        command = [sys.executable, "-m", "exporter", "--recipe", arguments.recipe, "--model", str(model)]
        command += [part for setting in SETTINGS for part in ("--set", setting)] + others
        subprocess.run([*command, "--no-resume", "--output", str(output)], check=True)
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    print_figures(report)


def _elsewhere(function: Callable[..., None], *arguments: object) -> None:
    """Calls in a process of its own: what this one holds would count as the peak of the export that it starts, because Linux hands the
    largest resident set of a parent on to what it executes."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit("no checkpoint was written")


def print_figures(report: dict) -> None:
    export = report["export"]
    print(f"{'stage':<12}{'wall s':>10}{'CPU s':>10}")
    for stage in export["stages"]:
        print(f"{stage['name']:<12}{stage['wall_s']:>10.1f}{stage['cpu_s']:>10.1f}")
    without = export["cpu_s"] - sum(stage["cpu_s"] for stage in export["stages"] if stage["name"] == "verify")
    print(f"{'total':<12}{export['wall_s']:>10.1f}{export['cpu_s']:>10.1f}   without the simulator {without:.1f} CPU s")
    planned = report["plan"]["host_memory_bytes"]
    print(f"planned memory {planned / 1e9:.2f} GB, found {export['peak_rss_bytes'] / planned:.2f} of it")
    print(f"peak memory {export['peak_rss_bytes'] / 1e9:.2f} GB, artifact {report['artifact']['bytes'] / 1e6:.1f} MB")
    print(f"targets: {TARGET_CPU_S:.0f} CPU s, {TARGET_PEAK_BYTES / 1e9:.0f} GB")


if __name__ == "__main__":
    main()
