"""Holds one .pte open and times calls of its method `forward` on request: one JSON object per line in, one out.

    python pte_worker.py PROGRAM THREADS [OPERATOR_LIBRARY]

A request is {"position": p, "tokens": n, "calls": k}: k calls of n tokens from position p on. Answers are CPU and wall milliseconds, the
least and the median of the calls. Caches hold zeros where nothing was decoded, which costs the same as anything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import statistics
import sys
import time

import torch


def main() -> None:
    program, threads = sys.argv[1], int(sys.argv[2])
    import executorch.kernels.quantized
    from executorch.extension.pybindings import portable_lib

    with contextlib.suppress(ImportError, OSError):  # the peers' operators; ours needs none of them
        import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401
    if len(sys.argv) > 3:
        ctypes.CDLL(sys.argv[3], mode=ctypes.RTLD_GLOBAL)
    portable_lib._unsafe_reset_threadpool(threads)
    from executorch.runtime import Runtime

    loaded = Runtime.get().load_program(program)
    method, flat = loaded.load_method("forward"), len(sys.argv) > 3
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        shape = (asked["tokens"],) if flat else (1, asked["tokens"])
        inputs = [torch.ones(shape, dtype=torch.int64), torch.tensor([asked["position"]])]
        cpu, wall = [], []
        for _ in range(asked["calls"]):
            before = time.process_time(), time.perf_counter()
            method.execute(inputs)
            cpu.append(1e3 * (time.process_time() - before[0]))
            wall.append(1e3 * (time.perf_counter() - before[1]))
        figures = {"cpu_ms_min": min(cpu), "cpu_ms_median": statistics.median(cpu)}
        figures |= {"wall_ms_min": min(wall), "wall_ms_median": statistics.median(wall)}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
