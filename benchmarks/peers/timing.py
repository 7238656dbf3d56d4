"""What all contenders share, so that their numbers mean the same thing: options, the loop that times them, perplexity."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CHUNK = 512
WARM_TOKENS = 2

Feed = Callable[[np.ndarray], None]
"""One forward pass over token ids behind what the cache holds, to the logits of the last."""


def peer_arguments(description: str) -> argparse.ArgumentParser:
    """`build CHECKPOINT FOLDER`, `time FOLDER` or `judge FOLDER`, and how to time."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("build", "time", "judge"))
    parser.add_argument("source", type=Path, nargs="?", help="checkpoint to build from")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 1024, 2048])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--prefill-repeats", type=int, default=2)
    parser.add_argument("--windows", type=Path, help="token windows: evaluation for judge, calibration for some builds")
    return parser


def memory(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes (ru_maxrss can be inherited from the process that started us)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure(restart: Callable[[], None], feed: Feed, vocab: int, given: argparse.Namespace) -> dict:
    """`restart` empties the cache. All ids are random and fixed, so no sampling and no end-of-text is in any number.

    CPU time is that of the whole process (time.process_time): a helper thread that computes or spins is counted too.
    """
    random = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return random.integers(1, vocab, count).astype(np.int32)

    restart()
    feed(ids(32))  # first-run costs: weight packing, page faults, buffers
    for _ in range(WARM_TOKENS):
        feed(ids(1))
    prefill = []
    for _ in range(given.prefill_repeats):
        restart()
        prefill.append(cpu_seconds(feed, ids(given.prefill)))
    restart()
    decode = decode_times(feed, ids, sorted(given.contexts), given.tokens)
    return {
        "decode": decode,
        "decode_tokens": given.tokens,
        "prefill_tokens": given.prefill,
        "prefill_cpu_s": round(statistics.median(prefill), 4),
        "peak_rss_bytes": memory("VmHWM"),
    }


def decode_times(feed: Feed, ids: Callable[[int], np.ndarray], contexts: list[int], tokens: int) -> dict:
    """CPU milliseconds per token; the first timed one sits at position `context`."""
    position, times = 0, {}
    for context in contexts:
        if context - WARM_TOKENS < position:
            raise SystemExit(
                f"context {context} is closer than {WARM_TOKENS} tokens to the previous one's last token ({position})"
            )
        while position < context - WARM_TOKENS:
            count = min(CHUNK, context - WARM_TOKENS - position)
            feed(ids(count))
            position += count
        steps = [1e3 * cpu_seconds(feed, ids(1)) for _ in range(WARM_TOKENS + tokens)]
        position += len(steps)
        timed = steps[WARM_TOKENS:]
        times[str(context)] = {"cpu_ms_median": round(statistics.median(timed), 4), "cpu_ms_min": round(min(timed), 4)}
    return times


def cpu_seconds(feed: Feed, token_ids: np.ndarray) -> float:
    start = time.process_time()
    feed(token_ids)
    return time.process_time() - start


def perplexity(logits: Callable[[list[int]], np.ndarray], windows: list[list[int]]) -> float:
    """Over token windows, each a conversation of its own, whose first token is given and not predicted. `logits` gives float32 [n, V]
    for n token ids."""
    total = 0.0
    for window in windows:
        rows = logits(window)[:-1].astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        chosen = rows[np.arange(len(rows)), window[1:]]
        total += float((np.log(np.exp(rows).sum(-1)) - chosen).sum())
    return float(np.exp(total / sum(len(window) - 1 for window in windows)))


def report(line: dict) -> None:
    print(json.dumps(line), flush=True)
