"""What both peers' timing loops share, so that their numbers mean the same thing."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CHUNK = 512


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes (ru_maxrss can be inherited from the process that started us)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure(
    restart: Callable[[], None],
    feed: Callable[[np.ndarray], None],
    vocab: int,
    contexts: list[int],
    tokens: int,
    prefill: int,
    prefill_repeats: int,
    seed: int = 0,
) -> dict:
    """restart() empties the cache; feed(ids) runs one forward pass over ids behind what the cache holds, to the last position's logits.

    A decode step is feed(one id); all ids are random and fixed by the seed, so no sampling and no end-of-text is in any number.
    CPU time is that of the whole process (time.process_time): a helper thread that computes or spins is counted too.
    """
    rng = np.random.default_rng(seed)

    def ids(count: int) -> np.ndarray:
        return rng.integers(1, vocab, count).astype(np.int32)

    restart()
    feed(ids(32))  # first-run costs: weight packing, page faults, buffers
    for _ in range(2):
        feed(ids(1))

    prefill_cpu, prefill_wall = [], []
    for _ in range(prefill_repeats if prefill else 0):
        restart()
        prompt = ids(prefill)
        wall, cpu = time.perf_counter(), time.process_time()
        feed(prompt)
        prefill_cpu.append(time.process_time() - cpu)
        prefill_wall.append(time.perf_counter() - wall)

    restart()
    position = 0
    decode = {}
    for context in sorted(contexts):
        warm = 2
        if context - warm < position:
            raise SystemExit(
                f"context {context} is closer than {warm} tokens to the previous one's last decode step ({position})"
            )
        while position < context - warm:
            count = min(CHUNK, context - warm - position)
            feed(ids(count))
            position += count
        cpu_ms, wall_ms = [], []
        for step in range(warm + tokens):
            one = ids(1)
            wall, cpu = time.perf_counter(), time.process_time()
            feed(one)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            position += 1
            if step >= warm:
                cpu_ms.append(cpu * 1e3)
                wall_ms.append(wall * 1e3)
        decode[str(context)] = {
            "cpu_ms_median": round(statistics.median(cpu_ms), 4),
            "cpu_ms_min": round(min(cpu_ms), 4),
            "wall_ms_median": round(statistics.median(wall_ms), 4),
        }
    return {
        "decode": decode,
        "decode_tokens": tokens,
        "prefill_tokens": prefill,
        "prefill_cpu_s": round(statistics.median(prefill_cpu), 4) if prefill_cpu else None,
        "prefill_cpu_s_all": [round(value, 4) for value in prefill_cpu],
        "prefill_wall_s": round(statistics.median(prefill_wall), 4) if prefill_wall else None,
        "peak_rss_bytes": memory("VmHWM"),
    }


def report(line: dict) -> None:
    print(json.dumps(line), flush=True)
