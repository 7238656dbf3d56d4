"""This project's ONNX artifact, timed and judged by the loops that time and judge the peers.

python ours.py time EXPORT --contexts 64 1024 2048 --tokens 24 --threads 1 --prefill 512
python ours.py judge EXPORT --windows WINDOWS.json
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import onnxruntime
from timing import measure, memory, peer_arguments, perplexity, report

from exporter.targets.onnx.driver import OnnxDriver
from exporter.targets.onnx.host import HostLayout
from exporter.targets.onnx.names import DATA_FILE, GRAPH_FILE, HOST_FILE


class Session:
    """An artifact, and a driver whose cache starts empty."""

    def __init__(self, given: argparse.Namespace) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = given.threads, 3
        graph = str(given.folder / GRAPH_FILE)
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.layout = HostLayout.read(given.folder / HOST_FILE)
        self.restart()

    def restart(self) -> None:
        self._driver = OnnxDriver(self.session, self.layout)

    def feed(self, token_ids: np.ndarray) -> None:
        self._driver.prompt(token_ids.tolist())

    def logits(self, token_ids: list[int]) -> np.ndarray:
        """float32 [n, V]."""
        self._driver.reset()
        return self._driver.prefill(token_ids)


def time_it(given: argparse.Namespace) -> None:
    at_start = memory("VmRSS")
    session = Session(given)
    sizes = sum((given.folder / name).stat().st_size for name in (GRAPH_FILE, DATA_FILE))
    memories = {"rss_start_bytes": at_start, "rss_loaded_bytes": memory("VmRSS"), "file_bytes": sizes}
    numbers = measure(session.restart, session.feed, session.layout.vocab_size, given)
    about = {"peer": "slm-export", "version": onnxruntime.__version__, "threads": given.threads}
    report({**about, **memories, **numbers})


def judge(given: argparse.Namespace) -> None:
    windows = json.loads(given.windows.read_text())["evaluation"]
    report({"perplexity": perplexity(Session(given).logits, windows)})


def main() -> None:
    given = peer_arguments(__doc__).parse_args()
    {"time": time_it, "judge": judge}[given.command](given)


if __name__ == "__main__":
    main()
