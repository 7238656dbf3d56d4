"""This project's ONNX artifact, timed by the loop that times the peers.

python ours.py time EXPORT --contexts 64 1024 2048 --tokens 24 --threads 1 --prefill 512
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
from timing import measure, memory, report

from exporter.targets.onnx.driver import OnnxDriver
from exporter.targets.onnx.host import HostLayout
from exporter.targets.onnx.names import DATA_FILE, GRAPH_FILE, HOST_FILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("time",))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 1024, 2048])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--prefill-repeats", type=int, default=2)
    given = parser.parse_args()
    at_start = memory("VmRSS")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = given.threads, 3
    graph = given.folder / GRAPH_FILE
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    layout = replace(HostLayout.read(given.folder / HOST_FILE), threads=given.threads)
    loaded, holder = memory("VmRSS"), {}

    def restart() -> None:
        holder["driver"] = OnnxDriver(session, layout)

    def feed(token_ids: np.ndarray) -> None:
        holder["driver"].prompt(token_ids.tolist())

    numbers = measure(
        restart, feed, layout.vocab_size, given.contexts, given.tokens, given.prefill, given.prefill_repeats
    )
    sizes = sum((given.folder / name).stat().st_size for name in (GRAPH_FILE, DATA_FILE))
    report(
        {
            "peer": "slm-export",
            "version": onnxruntime.__version__,
            "model": str(given.folder),
            "threads": given.threads,
            "file_bytes": sizes,
            "rss_start_bytes": at_start,
            "rss_loaded_bytes": loaded,
            **numbers,
        }
    )


if __name__ == "__main__":
    main()
