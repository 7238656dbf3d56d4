"""Per-token times of this project's harness against the engine's own call, timed alone, on the same export and the same token ids.

    python -m benchmarks.harness_vs_engine_tools OUT [OUT ...] --runner FOLDER [--rounds 40] [--tokens 32]

The harness's side is what `slm-export bench OUT --runner FOLDER` measures: a C++ runner, from one token id to the next. The engine's side
is a process that holds the export open through the engine's Python interface and times nothing but `InferenceSession.run_with_iobinding`,
or `Method.execute`, for the very tokens that the runner chose. They take short turns, changing who begins, since a shared machine changes
its speed within seconds; the ratio is that of the medians of a round, and what is printed is its median over rounds, the middle half of
them, and the ratio of the least times of all. A call through Python costs 10 to 50 microseconds, which is much of a token of a small model:
take exports of a larger one, with one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_tests.devices.local import LocalDevice
from device_tests.harness import Job, Measurement, measure
from device_tests.protocol import RunnerRequest
from exporter.bench import runner_files
from exporter.manifest import exported_recipe, read_manifest
from exporter.runtime.driver import open_driver
from exporter.stages import VERIFICATION_FOLDER
from exporter.targets.base import Target, find_target
from exporter.verify.evaluation import EvaluationSet

TIME_LIMIT_S = 120.0
LARGEST_DIFFERENCE = 0.05


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


class EngineProcess:
    """The engine's side, with the export open."""

    def __init__(self, work: Work) -> None:
        command = [sys.executable, "-m", "benchmarks.harness_vs_engine_tools", "--engine", str(work.folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self, prompt: tuple[int, ...], token_ids: tuple[int, ...]) -> Sequence[float]:
        """Times of the calls with one token, in ms. Raises ValueError when the engine's logits prefer other tokens."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([prompt, token_ids]) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        if said["token_ids"] != list(token_ids):
            raise ValueError("the engine's own loop chose other tokens than the runner")
        return [call / 1e6 for call in said["ns"]]

    def close(self) -> None:
        self._process.communicate()


def timed(owner: Any, name: str, times: list[int]) -> None:
    """Replaces a method of the engine's Python interface by itself with a clock around it."""
    method: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        started = time.perf_counter_ns()
        found = method(*arguments)
        times.append(time.perf_counter_ns() - started)
        return found

    setattr(owner, name, call)


def serve_engine(folder: Path) -> None:
    """Runs in the engine's process: for every line, one warm-up and one timed pass over its tokens."""
    target, times = find_target(exported_recipe(folder, read_manifest(folder)).target.kind), list[int]()
    if target.runtime == "onnxruntime":
        import onnxruntime

        timed(onnxruntime.InferenceSession, "run_with_iobinding", times)
    else:
        from executorch.runtime import Method

        timed(Method, "execute", times)
    driver = open_driver(target.driver, folder)
    for line in sys.stdin:
        prompt, token_ids = json.loads(line)
        for _ in range(2):
            driver.reset()
            chosen = [int(driver.prompt(prompt).argmax())]
            times.clear()
            chosen += [int(driver.decode(token).argmax()) for token in token_ids[:-1]]
        print(json.dumps({"token_ids": chosen, "ns": times}), flush=True)


@dataclass(frozen=True)
class Comparison:
    """Times in ms, one list per round, of both sides."""

    harness: list[Sequence[float]]
    engine: list[Sequence[float]]

    def ratios(self) -> list[float]:
        pairs = zip(self.harness, self.engine, strict=True)
        return [statistics.median(ours) / statistics.median(theirs) for ours, theirs in pairs]

    def row(self) -> str:
        low, middle, high = statistics.quantiles(self.ratios(), n=4)
        medians = [statistics.median(map(statistics.median, side)) for side in (self.harness, self.engine)]
        least = min(map(min, self.harness)) / min(map(min, self.engine))
        return f"{medians[0]:.3f} | {medians[1]:.3f} | {middle:.3f} | {low:.3f} to {high:.3f} | {least:.3f}"


def compare(work: Work, runner: Path, rounds: int) -> Comparison:
    """Raises what a measurement fails with, and ValueError where the two sides choose different tokens."""
    engine, found = EngineProcess(work), Comparison([], [])
    token_ids, _ = harness_round(work, runner)
    for index in range(rounds):
        if index % 2:
            found.engine.append(engine.round(work.prompt, token_ids))
        found.harness.append(harness_round(work, runner)[1])
        if not index % 2:
            found.engine.append(engine.round(work.prompt, token_ids))
    engine.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", type=Path, nargs="*")
    parser.add_argument("--runner", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--engine", type=Path, help="internal: serve one export to the benchmark")
    arguments = parser.parse_args()
    if arguments.engine is not None:
        serve_engine(arguments.engine)
        return
    print("| export | engine | harness, ms | engine alone, ms | ratio | middle half | ratio of least |")
    print("|---|---|---|---|---|---|---|")
    far = 0
    for folder in arguments.exports:
        work = work_of(folder, arguments.prompt_tokens, arguments.tokens)
        found = compare(work, arguments.runner, arguments.rounds)
        far += abs(statistics.median(found.ratios()) - 1) > LARGEST_DIFFERENCE
        print(f"| {folder.name} | {work.target.runtime} | {found.row()} |", flush=True)
    sys.exit(far > 0)


if __name__ == "__main__":
    main()
