"""This project's ONNX artifact, timed by the loop that times the peers.

python ours.py time EXPORT --contexts 64 1024 2048 --tokens 24 --threads 1 --prefill 512
"""

from __future__ import annotations

import numpy as np
import onnxruntime
from timing import measure, memory, peer_arguments, report

from exporter.targets.onnx.driver import OnnxDriver
from exporter.targets.onnx.host import HostLayout
from exporter.targets.onnx.names import DATA_FILE, GRAPH_FILE, HOST_FILE


def main() -> None:
    given = peer_arguments(__doc__).parse_args()
    at_start, graph = memory("VmRSS"), given.folder / GRAPH_FILE
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = given.threads, 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    layout = HostLayout.read(given.folder / HOST_FILE)
    sizes = sum((given.folder / name).stat().st_size for name in (GRAPH_FILE, DATA_FILE))
    memories = {"rss_start_bytes": at_start, "rss_loaded_bytes": memory("VmRSS"), "file_bytes": sizes}
    holder = {}

    def restart() -> None:
        holder["driver"] = OnnxDriver(session, layout)

    def feed(token_ids: np.ndarray) -> None:
        holder["driver"].prompt(token_ids.tolist())

    numbers = measure(restart, feed, layout.vocab_size, given)
    about = {"peer": "slm-export", "version": onnxruntime.__version__, "threads": given.threads}
    report({**about, **memories, **numbers})


if __name__ == "__main__":
    main()
