"""onnxruntime-genai as a comparison peer.

python genai.py build CHECKPOINT FOLDER [--extra KEY=VALUE ...]
python genai.py time FOLDER --contexts 64 1024 2048 --tokens 24 --threads 1 --prefill 512
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
from timing import measure, memory, peer_arguments, report


def build(source: Path, folder: Path, options: list[str]) -> None:
    """Its own INT4 defaults for the CPU, with further builder options such as prune_lm_head=true or block_size=128."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(folder)]
    command += [
        "-p",
        "int4",
        "-e",
        "cpu",
        "-c",
        str(folder / "cache"),
        *(["--extra_options", *options] if options else []),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"the builder failed ({done.returncode}):\n{(done.stdout + done.stderr)[-3000:]}")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    report({"peer": "onnxruntime-genai", "built": str(folder), "extra": options, "file_bytes": file_bytes(folder)})


def file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name.endswith((".onnx", ".onnx.data")))


def open_model(folder: Path, threads: int) -> Any:
    config = onnxruntime_genai.Config(str(folder))
    config.clear_providers()
    session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    return onnxruntime_genai.Model(config)


def time_it(given: argparse.Namespace) -> None:
    at_start, config = memory("VmRSS"), json.loads((given.folder / "genai_config.json").read_text())
    model = open_model(given.folder, given.threads)
    memories = {
        "rss_start_bytes": at_start,
        "rss_loaded_bytes": memory("VmRSS"),
        "file_bytes": file_bytes(given.folder),
    }
    longest = max([given.prefill, *(context + given.tokens for context in given.contexts)]) + 8
    settings, holder = onnxruntime_genai.GeneratorParams(model), {}
    settings.set_search_options(max_length=longest, do_sample=False)

    def restart() -> None:
        holder.clear()
        holder["generator"] = onnxruntime_genai.Generator(model, settings)

    def feed(ids: np.ndarray) -> None:
        holder["generator"].append_tokens(ids)

    numbers = measure(restart, feed, config["model"]["vocab_size"], given)
    about = {"peer": "onnxruntime-genai", "version": onnxruntime_genai.__version__, "threads": given.threads}
    report({**about, **memories, **numbers})


def main() -> None:
    parser = peer_arguments(__doc__)
    parser.add_argument("--extra", nargs="*", default=[])
    given = parser.parse_args()
    if given.command == "build":
        build(given.source, given.folder, given.extra)
    else:
        time_it(given)


if __name__ == "__main__":
    main()
