"""llama.cpp (through llama-cpp-python, compiled from its source package) as a comparison peer.

python llama_cpp_peer.py build CHECKPOINT FOLDER
python llama_cpp_peer.py time FOLDER [--kv f16|q8_0|q4_0] [--no-flash] --contexts 64 1024 2048 --tokens 24 --threads 1 --prefill 512
python llama_cpp_peer.py judge FOLDER [--kv f16|q8_0|q4_0] [--no-flash] --windows WINDOWS.json

Llama or Qwen3 without biases or rotary scaling (gguf_files.py). Every matrix is Q4_0, the tied table included.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import llama_cpp
from llama_session import KV, Session
from timing import measure, memory, peer_arguments, perplexity, report

MODEL_FILE = "model-q4_0.gguf"


def build(given: argparse.Namespace) -> None:
    import gguf_files  # here, because a process that times must not hold it: peak memory is one of the figures

    folder: Path = given.folder
    folder.mkdir(parents=True)
    floats, target, config = folder / "model-f16.gguf", folder / MODEL_FILE, gguf_files.read_config(given.source)
    gguf_files.write_floats(given.source, floats, "F16")
    gguf_files.quantize(floats, target, gguf_files.Quantization("Q4_0", pure=True))
    floats.unlink()
    if any(gguf_files.windowed_layers(config)):
        plain = target.rename(folder / "without-windows.gguf")
        gguf_files.add_windows(plain, target, config)
        plain.unlink()
    report({"peer": "llama.cpp", "built": str(target), "file_bytes": target.stat().st_size})


def time_it(given: argparse.Namespace) -> None:
    path, at_start = given.folder / MODEL_FILE, memory("VmRSS")
    context = max([given.prefill, *(context + given.tokens for context in given.contexts)]) + 8
    session = Session(path, context, given.threads, given.kv, not given.no_flash)
    memories = {"rss_start_bytes": at_start, "rss_loaded_bytes": memory("VmRSS"), "file_bytes": path.stat().st_size}
    numbers = measure(session.restart, session.feed, session.vocab, given)
    about = {"peer": "llama.cpp", "version": f"llama-cpp-python {llama_cpp.__version__}", "kv": given.kv}
    report({**about, "threads": given.threads, **memories, **numbers})


def judge(given: argparse.Namespace) -> None:
    windows = json.loads(given.windows.read_text())["evaluation"]
    session = Session(given.folder / MODEL_FILE, max(map(len, windows)), given.threads, given.kv, not given.no_flash)
    report({"perplexity": perplexity(session.logits, windows)})


def main() -> None:
    parser = peer_arguments(__doc__)
    parser.add_argument("--kv", choices=KV, default="f16")
    parser.add_argument("--no-flash", action="store_true", help="attention as separate products; f16 only")
    given = parser.parse_args()
    {"build": build, "time": time_it, "judge": judge}[given.command](given)


if __name__ == "__main__":
    main()
