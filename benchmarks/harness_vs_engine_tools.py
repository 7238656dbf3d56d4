"""Per-token times of this project's harness against the engine alone, on the same export and the same token ids.

    python -m benchmarks.harness_vs_engine_tools OUT [OUT ...] --runner FOLDER [--rounds 60]

FOLDER is built by device_tests/runners with -DENGINE_LOOPS=ON. Sides take turns, each in a new process every time, since where a
process's weights come to lie moves its times by up to a tenth, and a shared machine changes its speed within seconds:

* the harness: what `slm-export bench OUT --runner FOLDER` measures, from one token id to the next;
* the engine: a loop in C++ (engine_loops) that repeats the recorded calls, and times the engine's own call and nothing else;
* the engine through Python, in every fifth round: the same call from Python, whose difference to the loop is what its binding costs.

A ratio is that of the medians of a round; what is printed is its median over rounds, the middle half of them, and the ratio of the least
times of all. Take exports with one thread. Ends with 1 where harness and engine differ by more than 5 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.engine_calls import CALLS_FILE
from device_tests.devices.local import LocalDevice
from device_tests.harness import Job, Measurement, measure
from device_tests.protocol import RunnerRequest
from exporter.bench import runner_files
from exporter.manifest import exported_recipe, read_manifest
from exporter.stages import VERIFICATION_FOLDER
from exporter.targets.base import Target, find_target
from exporter.verify.evaluation import EvaluationSet

TIME_LIMIT_S = 120.0
LARGEST_DIFFERENCE = 0.05
PYTHON_EVERY = 5
HARNESS, ENGINE, PYTHON = "harness", "engine", "engine through Python"


@dataclass(frozen=True)
class Work:
    """One export, a prompt, and how many tokens to continue it by."""

    folder: Path
    target: Target
    prompt: tuple[int, ...]
    tokens: int


def work_of(folder: Path, prompt_tokens: int, tokens: int) -> Work:
    target = find_target(exported_recipe(folder, read_manifest(folder)).target.kind)
    text = [token for window in EvaluationSet.load(folder / VERIFICATION_FOLDER).windows for token in window]
    return Work(folder, target, tuple(text[:prompt_tokens]), tokens)


def harness_round(work: Work, runner: Path) -> tuple[tuple[int, ...], Sequence[float]]:
    """The token ids, and the time of each in ms: one warm-up, one repetition."""
    files = runner_files(runner, f"{work.target.runtime}_runner")
    names = tuple(name for name in read_manifest(work.folder)["outputs"] if "/" not in name)
    request = RunnerRequest("", (work.prompt,), work.tokens, 1, 1, ())
    found: Measurement = measure(LocalDevice(), Job(work.folder, names, files, request, TIME_LIMIT_S))
    if found.failure is not None:
        raise found.failure
    (repetition,) = found.timed(0)
    return repetition.token_ids, [gap / 1e6 for gap in repetition.decode_ns]


def engine_round(command: Sequence[str], said_to_it: str, token_ids: tuple[int, ...]) -> Sequence[float]:
    """Times of the calls with one token, in ms. Raises ValueError when the engine's logits prefer other tokens."""
    done = subprocess.run(command, input=said_to_it, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    if said["token_ids"] != list(token_ids[1:]):
        raise ValueError("the engine's own loop chose other tokens than the runner")
    return [call / 1e6 for call in said["ns"]]


@dataclass(frozen=True)
class Comparison:
    """Times in ms of every side, by round."""

    times: dict[str, dict[int, Sequence[float]]] = field(default_factory=lambda: {HARNESS: {}, ENGINE: {}, PYTHON: {}})

    def pairs(self, side: str) -> list[tuple[float, float]]:
        """Medians of a side and of the engine in the same round."""
        rounds = self.times[side].items()
        return [(statistics.median(own), statistics.median(self.times[ENGINE][index])) for index, own in rounds]

    def ratio(self, side: str) -> float:
        return statistics.median(own / engine for own, engine in self.pairs(side))

    def row(self, side: str) -> str:
        pairs = self.pairs(side)
        low, middle, high = statistics.quantiles((own / engine for own, engine in pairs), n=4)
        least = min(map(min, self.times[side].values())) / min(map(min, self.times[ENGINE].values()))
        more_us = 1e3 * statistics.median(own - engine for own, engine in pairs)
        median = statistics.median(own for own, _ in pairs)
        return f"{median:.3f} | {middle:.3f} | {low:.3f} to {high:.3f} | {least:.3f} | {more_us:+.1f}"


def compare(work: Work, runner: Path, rounds: int) -> Comparison:
    """Raises what a measurement fails with, and ValueError where the sides choose different tokens."""
    token_ids, _ = harness_round(work, runner)
    told, found = json.dumps([work.prompt, token_ids]), Comparison()
    python = [sys.executable, "-m", "benchmarks.engine_calls", str(work.folder)]
    with tempfile.TemporaryDirectory(prefix="slm-export-calls-") as folder:
        recording = [*python, "--record", folder]
        subprocess.run(recording, input=told, capture_output=True, text=True, check=True, timeout=TIME_LIMIT_S)
        loop = [str(runner / f"{work.target.runtime}_loop"), str(Path(folder) / CALLS_FILE)]
        sides: list[tuple[str, Callable[[], Sequence[float]]]] = [
            (HARNESS, lambda: harness_round(work, runner)[1]),
            (ENGINE, lambda: engine_round(loop, "", token_ids)),
        ]
        for index in range(rounds):
            for name, run in sides if index % 2 else reversed(sides):
                found.times[name][index] = run()
            if index % PYTHON_EVERY == 0:
                found.times[PYTHON][index] = engine_round(python, told, token_ids)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path, nargs="+")
    parser.add_argument("--runner", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    arguments = parser.parse_args()
    print("| export | side | ms | to the engine | middle half | of least | more than the engine, us |")
    print("|---|---|---|---|---|---|---|")
    far = 0
    for folder in arguments.exports:
        work = work_of(folder, arguments.prompt_tokens, arguments.tokens)
        found = compare(work, arguments.runner, arguments.rounds)
        far += abs(found.ratio(HARNESS) - 1) > LARGEST_DIFFERENCE
        for side in found.times:
            print(f"| {folder.name} | {side} | {found.row(side)} |", flush=True)
    sys.exit(far > 0)


if __name__ == "__main__":
    main()
