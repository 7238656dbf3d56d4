"""The runner for artifacts that have a Python driver: `python -m device_tests.python_runner REQUEST`, answers on standard output."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from device_tests.protocol import (
    PROTOCOL_VERSION,
    Ended,
    Event,
    Loaded,
    Memory,
    Probe,
    Repetition,
    RunnerRequest,
    event_line,
)
from exporter.runtime.driver import Driver, open_driver

PROBE_ROUNDS = 20
SHORTEST_PROBE_NS = 20_000_000
"""A buffer that is read faster is read several times in a row per sample: clocks and thread starts must not be what is measured."""


def run(request: RunnerRequest, emit: Callable[[Event], None]) -> None:
    """Loads, repeats every prompt, and reads memory; nothing is written while a clock runs."""
    started = time.perf_counter_ns()
    driver = open_driver(request.driver, Path(request.artifact))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    threads = int(getattr(driver, "threads", 0))
    engine, load_ns = getattr(driver, "engine", type(driver).__name__), time.perf_counter_ns() - started
    emit(Loaded(f"{engine} through Python", load_ns, threads, ",".join(map(str, cores)), PROTOCOL_VERSION))
    for number, prompt in enumerate(request.prompts):
        for index in range(request.warm_up + request.repetitions):
            emit(repeat(driver, list(prompt), request.generated_tokens, number, index, index < request.warm_up))
    peak = peak_rss_bytes()
    emit(Memory(peak, driver.kv_bytes()))
    for size in request.probe_bytes:
        emit(read_probe(size, threads or len(cores) or 1))
    emit(Ended())


def repeat(driver: Driver, prompt: list[int], count: int, number: int, index: int, warm_up: bool) -> Repetition:
    """One prompt from an empty cache, then greedy tokens. The loop does nothing but call the driver, pick, and read the clock."""
    token_ids, stamps, clock = [0] * count, [0] * (count + 1), time.perf_counter_ns
    driver.reset()
    gc.collect()
    gc.disable()
    try:
        stamps[0] = clock()
        token_ids[0] = int(driver.prompt(prompt).argmax())
        stamps[1] = clock()
        for step in range(1, count):
            token_ids[step] = int(driver.decode(token_ids[step - 1]).argmax())
            stamps[step + 1] = clock()
    finally:
        gc.enable()
    gaps = tuple(later - earlier for earlier, later in itertools.pairwise(stamps[1:]))
    return Repetition(number, index, warm_up, stamps[1] - stamps[0], tuple(token_ids), gaps)


def peak_rss_bytes() -> int:
    """Of this process, interpreter and libraries included."""
    import resource

    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def read_probe(size: int, threads: int) -> Probe:
    """Reads a buffer of so many bytes as decoding reads weights: from front to back, shared among threads."""
    buffer = np.ones(max(size // 8, threads), np.int64)
    parts, times = np.array_split(buffer, threads), []
    with ThreadPoolExecutor(threads) as pool:

        def read(rounds: int) -> int:
            started = time.perf_counter_ns()
            list(pool.map(lambda part: [part.max() for _ in range(rounds)], parts))
            return time.perf_counter_ns() - started

        rounds = max(1, SHORTEST_PROBE_NS // max(1, read(1)))
        times = [read(rounds) // rounds for _ in range(PROBE_ROUNDS)]
    return Probe(buffer.nbytes, threads, tuple(times))


def _end_with_input() -> None:
    """The host holds our standard input open; when it goes, so do we."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(9)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Entry point of the process."""
    _end_with_input()
    run(RunnerRequest.from_json(Path(sys.argv[1]).read_bytes()), lambda event: print(event_line(event), flush=True))


if __name__ == "__main__":
    main()
