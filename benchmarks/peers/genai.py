"""onnxruntime-genai as a comparison peer.

python genai.py build SRC DST [--kv int8|int4|none] [--scales calibrate|constant] [--extra KEY=VALUE ...]
python genai.py time DST --contexts 64 1024 2048 --tokens 24 --threads 1 --prefill 512 [--share-buffer default|true|false]
python genai.py logits DST IDS.npy OUT.npy     (last position's logits for a prompt, to check the build)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from timing import measure, memory, report

LOG = "builder.log"


def run_module(log: Path, *arguments: str) -> None:
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    with log.open("a") as out:
        done = subprocess.run([sys.executable, "-m", *arguments], stdout=out, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} failed ({done.returncode}):\n" + log.read_text()[-3000:])


def run_builder(source: Path, target: Path, log: Path, options: list[str]) -> None:
    arguments = ["-i", str(source), "-o", str(target), "-p", "int4", "-e", "cpu", "-c", str(target / "cache")]
    run_module(log, "onnxruntime_genai.models.builder", *arguments, *(["--extra_options", *options] if options else []))
    shutil.rmtree(target / "cache", ignore_errors=True)


def build(a: argparse.Namespace) -> None:
    if a.dst.exists():
        shutil.rmtree(a.dst)
    a.dst.mkdir(parents=True)
    log, start, options = a.dst / LOG, time.time(), list(a.extra)
    if a.kv != "none":
        scheme, scales = f"{a.kv}_per_channel", a.dst / "kv_scales.json"
        if (
            a.scales == "constant"
        ):  # four standard deviations of unit-variance keys and values: enough for timing random weights
            config = json.loads((a.src / "config.json").read_text())
            size = config["num_key_value_heads"] * (
                config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
            )
            value = [[4.0 / (128 if a.kv == "int8" else 8)] * size] * config["num_hidden_layers"]
            scales.write_text(json.dumps({"scales": {"k_scales": value, "v_scales": value}}))
        else:
            baseline = a.dst / "baseline"
            run_builder(a.src, baseline, log, options)
            run_module(
                log,
                "onnxruntime_genai.models.quantization.kv_cache_calibration",
                "--model",
                str(baseline),
                "--tokenizer",
                str(a.src),
                "--out",
                str(scales),
                "--quant-type",
                scheme,
                "--num-seqs",
                str(a.calibration_sequences),
                "--target-seq",
                "512",
            )
            shutil.rmtree(baseline)
        options += [f"kv_cache_quant_scheme={scheme}", f"kv_cache_scale_file={scales}"]
    run_builder(a.src, a.dst, log, options)
    report(
        {
            "peer": "onnxruntime-genai",
            "built": str(a.dst),
            "kv": a.kv,
            "extra": options,
            "seconds": round(time.time() - start, 1),
            "file_bytes": file_bytes(a.dst),
        }
    )


def file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name.endswith((".onnx", ".onnx.data")))


def open_model(a: argparse.Namespace, threads: int):
    import onnxruntime_genai as og

    config = og.Config(str(a.dst))
    config.clear_providers()
    session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    if a.share_buffer != "default":
        config.overlay(json.dumps({"search": {"past_present_share_buffer": a.share_buffer == "true"}}))
    return og, og.Model(config)


def time_it(a: argparse.Namespace) -> None:
    start_rss = memory("VmRSS")
    config = json.loads((a.dst / "genai_config.json").read_text())
    og, model = open_model(a, a.threads)
    loaded_rss = memory("VmRSS")
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=max([a.prefill, *(c + a.tokens for c in a.contexts)]) + 8, do_sample=False)
    holder = {}

    def restart() -> None:
        holder.clear()
        holder["generator"] = og.Generator(model, params)

    def feed(ids: np.ndarray) -> None:
        holder["generator"].append_tokens(ids)

    numbers = measure(restart, feed, config["model"]["vocab_size"], a.contexts, a.tokens, a.prefill, a.prefill_repeats)
    share = config["search"]["past_present_share_buffer"] if a.share_buffer == "default" else a.share_buffer == "true"
    report(
        {
            "peer": "onnxruntime-genai",
            "version": og.__version__,
            "model": str(a.dst),
            "threads": a.threads,
            "share_buffer": share,
            "file_bytes": file_bytes(a.dst),
            "rss_start_bytes": start_rss,
            "rss_loaded_bytes": loaded_rss,
            **numbers,
        }
    )


def logits(a: argparse.Namespace) -> None:
    og, model = open_model(a, 1)
    params = og.GeneratorParams(model)
    prompt = np.load(a.ids).astype(np.int32)
    params.set_search_options(max_length=len(prompt) + 8)
    generator = og.Generator(model, params)
    generator.append_tokens(prompt[: len(prompt) // 2])
    for token in prompt[len(prompt) // 2 :]:  # half prefill, half decode steps
        generator.append_tokens(np.array([token], np.int32))
    np.save(a.out, np.asarray(generator.get_logits()).reshape(-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    c = commands.add_parser("build")
    c.add_argument("src", type=Path)
    c.add_argument("dst", type=Path)
    c.add_argument("--kv", choices=("none", "int8", "int4"), default="none")
    c.add_argument("--scales", choices=("calibrate", "constant"), default="calibrate")
    c.add_argument("--calibration-sequences", type=int, default=4)
    c.add_argument(
        "--extra", nargs="*", default=[], help="further builder options, e.g. prune_lm_head=true block_size=128"
    )
    c.set_defaults(run=build)
    c = commands.add_parser("time")
    c.add_argument("dst", type=Path)
    c.add_argument("--contexts", type=int, nargs="+", default=[64, 1024, 2048])
    c.add_argument("--tokens", type=int, default=24)
    c.add_argument("--threads", type=int, default=1)
    c.add_argument("--prefill", type=int, default=512)
    c.add_argument("--prefill-repeats", type=int, default=2)
    c.add_argument("--share-buffer", choices=("default", "true", "false"), default="default")
    c.set_defaults(run=time_it)
    c = commands.add_parser("logits")
    c.add_argument("dst", type=Path)
    c.add_argument("ids", type=Path)
    c.add_argument("out", type=Path)
    c.add_argument("--share-buffer", choices=("default", "true", "false"), default="default")
    c.set_defaults(run=logits)
    a = parser.parse_args()
    a.run(a)


if __name__ == "__main__":
    main()
