"""Per-token times of this project's harness against the engine alone, on the same export and the same token ids.

    python -m benchmarks.harness_vs_engine_tools OUT [OUT ...] --runner FOLDER [--rounds 24]

FOLDER is built by device_tests/runners with -DENGINE_LOOPS=ON. Three sides take turns, each in a new process every time, since where a
process's weights come to lie moves its times by up to a tenth, and a shared machine changes its speed within seconds:

* the harness: what `slm-export bench OUT --runner FOLDER` measures, from one token id to the next;
* the engine: a loop in C++ (engine_loops) that repeats the recorded calls, and times the engine's own call and nothing else;
* the engine through Python: the same call from Python, whose difference to the loop is what Python and its binding cost.

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
    """Times in ms, one list per round, of every side."""

    times: dict[str, list[Sequence[float]]] = field(default_factory=dict)

    def ratios(self, side: str) -> list[float]:
        """To the engine, round by round."""
        pairs = zip(self.times[side], self.times[ENGINE], strict=True)
        return [statistics.median(one) / statistics.median(engine) for one, engine in pairs]

    def row(self, side: str) -> str:
        median = statistics.median(map(statistics.median, self.times[side]))
        low, middle, high = statistics.quantiles(self.ratios(side), n=4)
        least = min(map(min, self.times[side])) / min(map(min, self.times[ENGINE]))
        more = [
            statistics.median(one) - statistics.median(engine)
            for one, engine in zip(self.times[side], self.times[ENGINE], strict=True)
        ]
        return f"{median:.3f} | {middle:.3f} | {low:.3f} to {high:.3f} | {least:.3f} | {1e3 * statistics.median(more):+.1f}"


def compare(work: Work, runner: Path, rounds: int) -> Comparison:
    """Raises what a measurement fails with, and ValueError where the sides choose different tokens."""
    token_ids, _ = harness_round(work, runner)
    told = json.dumps([work.prompt, token_ids])
    python = [sys.executable, "-m", "benchmarks.engine_calls", str(work.folder)]
    found = Comparison({HARNESS: [], ENGINE: [], PYTHON: []})
    with tempfile.TemporaryDirectory(prefix="slm-export-calls-") as folder:
        subprocess.run([*python, "--record", folder], input=told, text=True, check=True, timeout=TIME_LIMIT_S)
        loop = [str(runner / f"{work.target.runtime}_loop"), str(Path(folder) / CALLS_FILE)]
        sides: list[tuple[str, Callable[[], Sequence[float]]]] = [
            (HARNESS, lambda: harness_round(work, runner)[1]),
            (ENGINE, lambda: engine_round(loop, "", token_ids)),
            (PYTHON, lambda: engine_round(python, told, token_ids)),
        ]
        for index in range(rounds):
            for step in range(len(sides)):
                name, run = sides[(index + step) % len(sides)]
                found.times[name].append(run())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path, nargs="+")
    parser.add_argument("--runner", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    arguments = parser.parse_args()
    print("| export | side | ms | to the engine | middle half | of least | more than the engine, us |")
    print("|---|---|---|---|---|---|---|")
    far = 0
    for folder in arguments.exports:
        work = work_of(folder, arguments.prompt_tokens, arguments.tokens)
        found = compare(work, arguments.runner, arguments.rounds)
        far += abs(statistics.median(found.ratios(HARNESS)) - 1) > LARGEST_DIFFERENCE
        for side in found.times:
            print(f"| {folder.name} | {side} | {found.row(side)} |", flush=True)
    sys.exit(far > 0)


if __name__ == "__main__":
    main()
