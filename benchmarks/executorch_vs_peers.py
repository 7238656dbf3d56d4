"""ExecuTorch decoding against the exporters of others: export_llm of the installed wheel, and optimum-executorch in its own environment.

    python -m benchmarks.executorch_vs_peers --work FOLDER [--rounds 5] [--threads 1] [--optimum PYTHON]

One checkpoint of random weights, INT4 in groups of 32, INT8 activations, one runtime. Every contender is built once, in a process whose
CPU time and peak memory are recorded, and kept in FOLDER. Then all are open at once and take turns at every position; a ratio is that of
least times, which other work on the machine disturbs least. Every round loads all programs anew, because where their weights come to lie
in memory moves the time of a token by up to a tenth. PYTHON is an interpreter with optimum-executorch; without it that contender
is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.matmul_nbits import read_bytes_per_second
from benchmarks.onnx_vs_peers import QUICK
from benchmarks.shapes import FOUR_LAYERS, write_random_checkpoint
from exporter.targets.executorch.kernels.build import operators_library

CONTEXT, CHUNK = 8448, 128
POSITIONS = (0, 500, 2000, 8000)
PROMPT = CHUNK - 1
"""A program of export_llm takes one token less than its longest sequence."""
SCRIPTS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Contender:
    """One exporter and its settings: how it builds, and where it leaves its program."""

    name: str
    command: tuple[str, ...]
    program: Path
    own_operators: bool = False


def ours(work: Path, name: str, *settings: str) -> Contender:
    folder = work / f"ours-{name.replace(' ', '-')}"
    options = (*QUICK, f"cache.context={CONTEXT}", f"cache.chunk={CHUNK}", *settings)
    overrides = [part for setting in options for part in ("--set", setting)]
    command = (
        "-m",
        "exporter",
        "--recipe",
        "android-cpu",
        "--model",
        str(work / "checkpoint"),
        "--output",
        str(folder),
    )
    return Contender(
        f"slm-export {name}", (sys.executable, *command, "--force", *overrides), folder / "model.pte", True
    )


def export_llm(work: Path, name: str, *settings: str) -> Contender:
    folder = work / f"export_llm-{name}"
    folder.mkdir(exist_ok=True)
    meta = work / "meta"
    options = {
        "base.model_class": "llama3",
        "base.checkpoint": meta / "consolidated.pth",
        "base.params": meta / "params.json",
        "base.metadata": '\'{"get_bos_id":1,"get_eos_ids":[2]}\'',
        "model.use_kv_cache": True,
        "model.use_sdpa_with_kv_cache": True,
        "quantization.qmode": "8da4w",
        "quantization.group_size": 32,
        "quantization.embedding_quantize": "'4,32'",
        "backend.xnnpack.enabled": True,
        "backend.xnnpack.extended_ops": True,
        "export.max_seq_length": CHUNK,
        "export.max_context_length": CONTEXT,
        "export.output_name": folder / "model.pte",
    }
    given = (*(f"{key}={value}" for key, value in options.items()), *settings)
    command = (sys.executable, "-m", "executorch.extension.llm.export.export_llm", *given)
    return Contender(f"export_llm {name}", command, folder / "model.pte")


def optimum(work: Path, python: str) -> Contender:
    folder = work / "optimum"
    settings = (
        "--qlinear",
        "8da4w",
        "--qlinear_group_size",
        "32",
        "--qembedding",
        "4w",
        "--qembedding_group_size",
        "32",
    )
    shape = ("--max_seq_len", str(CONTEXT), "--use_custom_sdpa", "--use_custom_kv_cache")
    tool = str(Path(python).parent / "optimum-cli")
    command = (tool, "export", "executorch", "--model", str(work / "checkpoint"), "--task", "text-generation")
    options = ("--recipe", "xnnpack", *shape, *settings, "--output_dir", str(folder))
    return Contender("optimum-executorch", (*command, *options), folder / "model.pte")


def write_meta_checkpoint(checkpoint: Path, folder: Path, config: dict) -> None:
    """The same weights under the names, and with the interleaved rotation, that export_llm's model class has."""
    folder.mkdir(exist_ok=True)
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]

    def interleaved(weight: torch.Tensor, count: int) -> torch.Tensor:
        return weight.view(count, 2, width // 2, -1).transpose(1, 2).reshape(weight.shape)

    given, written = load_file(checkpoint / "model.safetensors"), {}
    written["tok_embeddings.weight"] = written["output.weight"] = given["model.embed_tokens.weight"]
    written["norm.weight"] = given["model.norm.weight"]
    names = {"v_proj": "wv", "o_proj": "wo", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    for layer in range(config["num_hidden_layers"]):
        source, target = f"model.layers.{layer}", f"layers.{layer}"
        written[f"{target}.attention.wq.weight"] = interleaved(given[f"{source}.self_attn.q_proj.weight"], heads)
        written[f"{target}.attention.wk.weight"] = interleaved(given[f"{source}.self_attn.k_proj.weight"], kv_heads)
        for name, short in names.items():
            block = ("self_attn", "attention") if name in ("v_proj", "o_proj") else ("mlp", "feed_forward")
            written[f"{target}.{block[1]}.{short}.weight"] = given[f"{source}.{block[0]}.{name}.weight"]
        written[f"{target}.attention_norm.weight"] = given[f"{source}.input_layernorm.weight"]
        written[f"{target}.ffn_norm.weight"] = given[f"{source}.post_attention_layernorm.weight"]
    torch.save(written, folder / "consolidated.pth")
    params = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "hidden_dim": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": config["rope_theta"],
    }
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")


def build(contender: Contender) -> dict:
    """CPU seconds and peak memory of the whole export, its children included; kept beside the program."""
    record = contender.program.parent.with_suffix(".json")
    if contender.program.is_file() and record.is_file():
        return dict(json.loads(record.read_text(encoding="utf-8")))
    started, log = time.monotonic(), contender.program.parent.with_suffix(".log")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("wb") as output:
        process = subprocess.Popen(contender.command, stdout=output, stderr=output, env=os.environ)
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{contender.name} failed; see {log}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = {"cpu_s": cpu, "wall_s": time.monotonic() - started, "peak_rss_bytes": peak}
    record.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def tree_memory(root: int) -> int:
    """Resident bytes of a process and its descendants."""
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        try:
            status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
            children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8")
        except OSError:
            continue  # it has ended
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
        waiting += [int(child) for child in children.split()]
    return total


class Worker:
    """An open program in a process of its own."""

    def __init__(self, contender: Contender, threads: int) -> None:
        command = [sys.executable, str(SCRIPTS / "pte_worker.py"), str(contender.program), str(threads)]
        command += [str(operators_library())] if contender.own_operators else []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answer()

    def ask(self, position: int, tokens: int, calls: int) -> dict:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"position": position, "tokens": tokens, "calls": calls}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"{self.process.args} ended")


Cell = tuple[int, int]
"""Position and tokens of a call."""


def least(contenders: list[Contender], threads: int, rounds: int) -> dict[Cell, dict[str, float]]:
    """CPU milliseconds per call of every contender, the least of interleaved rounds."""
    cells = [*((position, 1) for position in POSITIONS), (0, PROMPT)]
    best: dict[Cell, dict[str, float]] = {cell: {} for cell in cells}
    for turn in range(rounds):
        ordered = contenders[turn % len(contenders) :] + contenders[: turn % len(contenders)]
        workers = {contender.name: Worker(contender, threads) for contender in ordered}
        for cell in cells * 2:
            for name, worker in workers.items():
                time = worker.ask(*cell, calls=8 if cell[1] == 1 else 1)["cpu_ms_min"]
                best[cell][name] = min(best[cell].get(name, float("inf")), time)
        for worker in workers.values():
            worker.close()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--optimum", help="interpreter of an environment with optimum-executorch")
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "checkpoint").is_dir():
        write_random_checkpoint(FOUR_LAYERS, work / "checkpoint")
        write_meta_checkpoint(work / "checkpoint", work / "meta", FOUR_LAYERS)
    contenders = [
        ours(work, "int4", "kv_cache.bits=4", "kv_cache.zero_point=true"),
        ours(work, "int8"),
        export_llm(work, "float"),
        export_llm(work, "int8", "model.quantize_kv_cache=True"),
        *([optimum(work, given.optimum)] if given.optimum else []),
    ]
    for contender in contenders:
        figures = {**build(contender), "bytes": contender.program.stat().st_size}
        print(json.dumps({"contender": contender.name, **figures}), flush=True)
    for (position, tokens), times in least(contenders, given.threads, given.rounds).items():
        reference = min(time for name, time in times.items() if name.startswith("export_llm"))
        rows = {name: {"cpu_ms": round(time, 3), "ratio": round(time / reference, 3)} for name, time in times.items()}
        print(json.dumps({"position": position, "tokens": tokens, **rows}), flush=True)
    torch.set_num_threads(given.threads)
    print(json.dumps({"reading_memory_gb_s": round(read_bytes_per_second() / 1e9, 1)}), flush=True)


if __name__ == "__main__":
    main()
