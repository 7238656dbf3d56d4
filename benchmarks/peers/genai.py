"""onnxruntime-genai as a comparison peer.

python genai.py build CHECKPOINT FOLDER [--kv int8|int4] [--windows WINDOWS.json] [--extra KEY=VALUE ...]
python genai.py time FOLDER --contexts 64 1024 2048 --tokens 24 --threads 1 --prefill 512
python genai.py judge FOLDER --windows WINDOWS.json

Its cache is float32 by default. `int8` and `int4` have one calibrated scale per channel, the finest that its builder offers on a CPU;
the scales come from the keys and values of the calibration windows, or of random token ids without them.
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
from timing import measure, memory, peer_arguments, perplexity, report

SCALED_TO = 128
"""Divisor of the scales in the file; the builder turns it into 8 for INT4."""


def build(given: argparse.Namespace) -> None:
    """Its own INT4 defaults for the CPU, with further builder options such as prune_lm_head=true or block_size=128."""
    given.folder.mkdir(parents=True)
    options = list(given.extra)
    command = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-i",
        str(given.source),
        "-p",
        "int4",
        "-e",
        "cpu",
    ]
    command += ["-o", str(given.folder), "-c", str(given.folder / "cache")]
    if given.kv != "fp32":
        scales = given.folder / "kv_scales.json"
        scales.write_text(json.dumps({"scales": kv_scales(given.source, given.windows), "qmax": SCALED_TO}))
        options += [f"kv_cache_quant_scheme={given.kv}_per_channel", f"kv_cache_scale_file={scales}"]
    command += ["--extra_options", *options] if options else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        shutil.rmtree(given.folder)
        raise SystemExit(f"the builder failed ({done.returncode}):\n{(done.stdout + done.stderr)[-3000:]}")
    shutil.rmtree(given.folder / "cache", ignore_errors=True)
    about = {"peer": "onnxruntime-genai", "built": str(given.folder), "kv": given.kv, "extra": options}
    report({**about, "file_bytes": file_bytes(given.folder)})


def kv_scales(source: Path, windows: Path | None) -> dict[str, list[list[float]]]:
    """Largest magnitude of every channel of every layer's rotated keys and values, over the divisor."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    random = np.random.default_rng(0).integers(1, model.config.vocab_size, (1, 128)).tolist()
    peaks: dict[str, list[torch.Tensor]] = {}
    for ids in json.loads(windows.read_text())["calibration"] if windows else random:
        cache = DynamicCache()  # without the model's windows, so that every position is still there
        with torch.no_grad():
            model(torch.tensor([ids]), past_key_values=cache)
        for side in ("keys", "values"):
            found = [getattr(layer, side)[0].abs().amax(1).flatten() for layer in cache.layers]
            peaks[side] = [torch.maximum(*pair) for pair in zip(found, peaks.get(side, found), strict=True)]
    scaled = {
        side: [(layer / SCALED_TO).clamp_min(1e-8).tolist() for layer in layers] for side, layers in peaks.items()
    }
    return {"k_scales": scaled["keys"], "v_scales": scaled["values"]}


def file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name.endswith((".onnx", ".onnx.data")))


class Session:
    """A model, and a generator whose cache starts empty."""

    def __init__(self, folder: Path, threads: int, longest: int) -> None:
        config = onnxruntime_genai.Config(str(folder))
        config.clear_providers()
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = onnxruntime_genai.Model(config)
        self.vocab = json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"]
        self._settings = onnxruntime_genai.GeneratorParams(self.model)
        self._settings.set_search_options(max_length=longest, do_sample=False)
        self._generator: Any = None

    def restart(self) -> None:
        self._generator = None
        self._generator = onnxruntime_genai.Generator(self.model, self._settings)

    def feed(self, ids: np.ndarray) -> None:
        self._generator.append_tokens(ids)

    def logits(self, ids: list[int]) -> np.ndarray:
        """float32 [n, V]. A pruned head gives the last token's only, so tokens go in one by one."""
        self.restart()
        rows = []
        for token in ids:
            self.feed(np.array([token], np.int32))
            rows.append(np.asarray(self._generator.get_logits(), np.float32).reshape(-1, self.vocab)[-1])
        return np.stack(rows)


def time_it(given: argparse.Namespace) -> None:
    at_start = memory("VmRSS")
    longest = max([given.prefill, *(context + given.tokens for context in given.contexts)]) + 8
    session = Session(given.folder, given.threads, longest)
    loaded = memory("VmRSS")
    memories = {"rss_start_bytes": at_start, "rss_loaded_bytes": loaded, "file_bytes": file_bytes(given.folder)}
    numbers = measure(session.restart, session.feed, session.vocab, given)
    about = {"peer": "onnxruntime-genai", "version": onnxruntime_genai.__version__, "threads": given.threads}
    report({**about, **memories, **numbers})


def judge(given: argparse.Namespace) -> None:
    windows = json.loads(given.windows.read_text())["evaluation"]
    session = Session(given.folder, given.threads, max(map(len, windows)) + 1)
    report({"perplexity": perplexity(session.logits, windows)})


def main() -> None:
    parser = peer_arguments(__doc__)
    parser.add_argument("--kv", choices=("fp32", "int8", "int4"), default="fp32")
    parser.add_argument("--extra", nargs="*", default=[])
    given = parser.parse_args()
    {"build": build, "time": time_it, "judge": judge}[given.command](given)


if __name__ == "__main__":
    main()
