"""ONNX decoding against onnxruntime-genai and llama.cpp: the same checkpoint, interleaved, one thread, CPU time.

    python -m benchmarks.onnx_vs_peers --peers FOLDER [--shape four-layers|llama-1b] [--rounds 3] [--contexts 64 1024 2048]

FOLDER gets the peers' virtual environment (benchmarks/peers/setup.sh, minutes of compiling at first use), the random-weight
checkpoint and every build. Ratios are medians over rounds of the medians over tokens; absolute figures belong to the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shapes import FOUR_LAYERS, LLAMA_1B, write_random_checkpoint

SCRIPTS = Path(__file__).parent / "peers"
SHAPES = {"four-layers": FOUR_LAYERS, "llama-1b": LLAMA_1B}
GATES_OFF = (
    "gates.top1_agreement_min=null",
    "gates.mean_kl_max=null",
    "gates.perplexity_artifact_percent_max=null",
    "gates.perplexity_quantized_percent_max=null",
)
QUICK = (
    "weights.method=rtn",
    "calibration.tokens=64",
    "calibration.window=64",
    "calibration.activation_tokens=64",
    "verify.windows=1",
    "verify.window=32",
    "verify.decode_tokens=1",
    "verify.quality_windows=1",
    *GATES_OFF,
    *(gate.replace("gates.", "gates_int4_kv.") for gate in GATES_OFF),
)


@dataclass(frozen=True)
class Contender:
    """One build, and how to time it."""

    name: str
    folder: str
    build: tuple[str, ...]
    script: str
    options: tuple[str, ...] = ()


def ours(name: str, *settings: str) -> Contender:
    return Contender(f"slm-export {name}", f"ours-{name}", settings, "ours.py")


CONTENDERS = (
    ours("g32 int8"),
    ours("g32 int4", "kv_cache.bits=4", "kv_cache.zero_point=true"),
    ours("g128 int8", "weights.group_size=128"),
    Contender("genai", "genai", ("--extra", "prune_lm_head=true"), "genai.py"),
    Contender("genai g128", "genai-128", ("--extra", "prune_lm_head=true", "block_size=128"), "genai.py"),
    Contender("llama.cpp f16", "llama", (), "llama_cpp_peer.py", ("--kv", "f16")),
    Contender("llama.cpp q8_0", "llama", (), "llama_cpp_peer.py", ("--kv", "q8_0")),
    Contender("llama.cpp q4_0", "llama", (), "llama_cpp_peer.py", ("--kv", "q4_0")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="four-layers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 1024, 2048])
    given = parser.parse_args()
    if not (given.peers / "venv").is_dir():
        subprocess.run(["bash", str(SCRIPTS / "setup.sh"), str(given.peers)], check=True)
    work = given.peers / given.shape
    if not (work / "checkpoint").is_dir():
        write_random_checkpoint(SHAPES[given.shape], work / "checkpoint")
    for contender in CONTENDERS:
        build(contender, given.peers, work, max(given.contexts) + 256)
    lines = [
        (contender.name, measured(contender, given.peers, work, given.contexts))
        for _ in range(given.rounds)
        for contender in CONTENDERS
    ]
    print_table(lines, given.contexts)


def build(contender: Contender, peers: Path, work: Path, context: int) -> None:
    """Builds once; a folder that is there is used as it is."""
    folder = work / contender.folder
    if folder.is_dir():
        return
    if contender.script == "ours.py":
        command = [sys.executable, "-m", "exporter", "--recipe", "onnx-cpu", "--model", str(work / "checkpoint")]
        command += [
            part for setting in (*QUICK, f"cache.context={context}", *contender.build) for part in ("--set", setting)
        ]
        subprocess.run([*command, "--output", str(folder)], check=True)
        return
    command = [str(peers / "venv/bin/python"), str(SCRIPTS / contender.script), "build", str(work / "checkpoint")]
    subprocess.run([*command, str(folder), *contender.build], check=True)


def measured(contender: Contender, peers: Path, work: Path, contexts: list[int]) -> dict:
    python = sys.executable if contender.script == "ours.py" else str(peers / "venv/bin/python")
    command = [python, str(SCRIPTS / contender.script), "time", str(work / contender.folder), *contender.options]
    command += ["--threads", "1", "--contexts", *map(str, contexts)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent.parent)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def print_table(lines: list[tuple[str, dict]], contexts: list[int]) -> None:
    """CPU ms per token, and in brackets the ratio to llama.cpp with its f16 cache."""
    columns = [f"ctx {context}" for context in contexts] + ["prefill 512, s"]

    def figures(name: str) -> list[float]:
        runs = [run for other, run in lines if other == name]
        cells = [[run["decode"][str(context)]["cpu_ms_median"] for run in runs] for context in contexts]
        return [statistics.median(cell) for cell in [*cells, [run["prefill_cpu_s"] for run in runs]]]

    reference = figures("llama.cpp f16")
    print(f"| build | {' | '.join(columns)} | file MB | peak RSS MB |\n|---|{'---|' * (len(columns) + 2)}")
    for contender in CONTENDERS:
        run = next(run for name, run in lines if name == contender.name)
        cells = [
            f"{value:.2f} ({value / base:.2f})" for value, base in zip(figures(contender.name), reference, strict=True)
        ]
        print(
            f"| {contender.name} | {' | '.join(cells)} | {run['file_bytes'] / 1e6:.1f} | {run['peak_rss_bytes'] / 1e6:.0f} |"
        )


if __name__ == "__main__":
    main()
