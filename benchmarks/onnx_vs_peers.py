"""ONNX decoding against onnxruntime-genai and llama.cpp: the same checkpoint, interleaved, one thread, CPU time.

    python -m benchmarks.onnx_vs_peers --peers FOLDER [--shape four-layers|llama-1b|trained-5m] [--rounds 3] [--contexts 64 1024]

FOLDER gets the peers' virtual environment (benchmarks/peers/setup.sh, minutes of compiling at first use), the checkpoint and every
build. Two shapes have random weights; trained-5m is the bundled example, and its table has each build's perplexity on the same text too.
Ratios are medians over rounds of the medians over tokens; absolute figures belong to the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peer_environment import make_environment, peer_python, run_script
from benchmarks.shapes import FOUR_LAYERS, LLAMA_1B, write_random_checkpoint
from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.recipe import load_recipe
from exporter.resources import example_folder
from exporter.texts import read_texts

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


TRAINED = ("verify.quality_windows=4", *GATES_OFF, *(gate.replace("gates.", "gates_int4_kv.") for gate in GATES_OFF))


@dataclass(frozen=True)
class Shape:
    """A model to run. Without a config it is the bundled example, which is trained."""

    config: dict | None
    contexts: tuple[int, ...]
    prefill: int = 512

    @property
    def trained(self) -> bool:
        return self.config is None


SHAPES = {
    "four-layers": Shape(FOUR_LAYERS, (64, 1024, 2048)),
    "llama-1b": Shape(LLAMA_1B, (64, 1024, 2048)),
    "trained-5m": Shape(None, (64, 256, 448), prefill=256),
}


@dataclass(frozen=True)
class Work:
    """Where the builds of one shape are, and what they are built from."""

    peers: Path
    shape: Shape
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return example_folder() / "model" if self.shape.trained else self.folder / "checkpoint"

    @property
    def windows(self) -> Path:
        return self.folder / "windows.json"


@dataclass(frozen=True)
class Contender:
    """One build, and how to run it."""

    name: str
    folder: str
    build: tuple[str, ...]
    script: str
    options: tuple[str, ...] = ()

    def python(self, peers: Path) -> str:
        return sys.executable if self.script == "ours.py" else peer_python(peers)


def ours(name: str, *settings: str) -> Contender:
    return Contender(f"slm-export {name}", f"ours-{name}", settings, "ours.py")


REFERENCE = "llama.cpp f16"
GENAI_QUANTIZED = ("--extra", "prune_lm_head=true", "windowed_kv_cache=false")
"""Its windowed cache has no slots at first when it is quantized, and its operator refuses that: windows then mask a whole cache."""

CONTENDERS = (
    ours("g32 int8"),
    ours("g32 int4", "kv_cache.bits=4", "kv_cache.zero_point=true"),
    ours("g128 int8", "weights.group_size=128"),
    ours("g32 gqa", "onnx.attention=gqa", "kv_cache.bits=32"),
    ours("g32 gqa int8", "onnx.attention=gqa"),
    Contender("genai", "genai", ("--extra", "prune_lm_head=true"), "genai.py"),
    Contender("genai g128", "genai-128", ("--extra", "prune_lm_head=true", "block_size=128"), "genai.py"),
    Contender("genai int8", "genai-int8", ("--kv", "int8", *GENAI_QUANTIZED), "genai.py"),
    Contender("genai int4", "genai-int4", ("--kv", "int4", *GENAI_QUANTIZED), "genai.py"),
    Contender(REFERENCE, "llama", (), "llama_cpp_peer.py", ("--kv", "f16")),
    Contender("llama.cpp f16, no flash", "llama", (), "llama_cpp_peer.py", ("--kv", "f16", "--no-flash")),
    Contender("llama.cpp q8_0", "llama", (), "llama_cpp_peer.py", ("--kv", "q8_0")),
    Contender("llama.cpp q4_0", "llama", (), "llama_cpp_peer.py", ("--kv", "q4_0")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="four-layers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contexts", type=int, nargs="+")
    parser.add_argument("--only", nargs="+", help="names of contenders")
    given = parser.parse_args()
    make_environment(given.peers)
    work = Work(given.peers, SHAPES[given.shape], given.peers / given.shape)
    contexts = given.contexts or list(work.shape.contexts)
    wanted = {*given.only, REFERENCE} if given.only else {contender.name for contender in CONTENDERS}
    chosen = [contender for contender in CONTENDERS if contender.name in wanted]
    prepare(work)
    for contender in chosen:
        build(contender, work, max(contexts) + 256)
    lines = [(contender.name, measured(contender, work, contexts)) for _ in range(given.rounds) for contender in chosen]
    print_table(lines, chosen, contexts, work)


def prepare(work: Work) -> None:
    """The checkpoint, or the token windows of a trained one."""
    work.folder.mkdir(parents=True, exist_ok=True)
    if work.shape.config is not None:
        if not work.checkpoint.is_dir():
            write_random_checkpoint(work.shape.config, work.checkpoint)
        return
    text, codec = example_folder(), open_checkpoint(work.checkpoint, None).text_codec()
    texts = read_texts(load_recipe("onnx-cpu"), text / "calibration.txt", text / "evaluation.txt", codec)
    windows = {"evaluation": texts.evaluation, "calibration": texts.calibration}
    work.windows.write_text(json.dumps(windows), encoding="utf-8")


def build(contender: Contender, work: Work, context: int) -> None:
    """Builds once; a folder that is there is used as it is."""
    folder = work.folder / contender.folder
    if folder.is_dir():
        return
    if contender.script == "ours.py":
        settings = (*(TRAINED if work.shape.trained else QUICK), f"cache.context={context}", *contender.build)
        command = [sys.executable, "-m", "exporter", "--recipe", "onnx-cpu", "--model", str(work.checkpoint)]
        command += [part for setting in settings for part in ("--set", setting)]
        subprocess.run([*command, "--output", str(folder)], check=True)
        return
    windows = ("--windows", str(work.windows)) if work.shape.trained else ()
    arguments = ("build", str(work.checkpoint), str(folder), *windows, *contender.build)
    run_script(contender.python(work.peers), contender.script, *arguments)


def measured(contender: Contender, work: Work, contexts: list[int]) -> dict:
    """Times, bytes, and the perplexity where weights are trained."""
    arguments = ["time", str(work.folder / contender.folder), *contender.options, "--threads", "1"]
    arguments += ["--prefill", str(work.shape.prefill), "--contexts", *map(str, contexts)]
    found = run_script(contender.python(work.peers), contender.script, *arguments)[-1]
    if work.shape.trained:
        arguments = ["judge", str(work.folder / contender.folder), *contender.options, "--windows", str(work.windows)]
        found |= run_script(contender.python(work.peers), contender.script, *arguments)[-1]
    return found


def print_table(lines: list[tuple[str, dict]], chosen: list[Contender], contexts: list[int], work: Work) -> None:
    """CPU ms per token, and in brackets the ratio to the reference."""
    columns = [
        *(f"ctx {context}" for context in contexts),
        f"prefill {work.shape.prefill}, s",
        "file MB",
        "peak RSS MB",
    ]
    columns += ["perplexity"] if work.shape.trained else []

    def figures(name: str) -> list[float]:
        runs = [run for other, run in lines if other == name]
        cells = [[run["decode"][str(context)]["cpu_ms_median"] for run in runs] for context in contexts]
        return [statistics.median(cell) for cell in [*cells, [run["prefill_cpu_s"] for run in runs]]]

    reference = figures(REFERENCE)
    print(f"| build | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for contender in chosen:
        run = next(run for name, run in lines if name == contender.name)
        pairs = zip(figures(contender.name), reference, strict=True)
        cells = [f"{value:.2f} ({value / base:.2f})" for value, base in pairs]
        cells += [f"{run['file_bytes'] / 1e6:.1f}", f"{run['peak_rss_bytes'] / 1e6:.0f}"]
        cells += [f"{run['perplexity']:.3f}"] if work.shape.trained else []
        print(f"| {contender.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
