"""Perplexity of llama.cpp's quantizations on token windows, with bits per weight: JSON lines on standard output.

python llama_cpp_quality.py CHECKPOINT WINDOWS.json FOLDER

WINDOWS.json holds lists of token ids: `evaluation`, and `calibration` for the importance matrix. FOLDER gets the files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from gguf_files import (
    Quantization,
    add_windows,
    gguf_name,
    quantize,
    read_config,
    stored,
    windowed_layers,
    write_floats,
)
from llama_session import KV, LlamaFault, Session
from timing import perplexity, report

FLOATS = ("F32", "F16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "windows", "folder"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    windows, config = json.loads(given.windows.read_text()), read_config(given.checkpoint)
    report({"peer": "llama.cpp", "version": f"llama-cpp-python {llama_cpp.__version__}"})
    for name, file in files(given.checkpoint, given.folder, windows["calibration"]):
        kept, runnable = stored(file), file
        if any(windowed_layers(config)):
            runnable = file.with_name(f"windowed-{file.name}")
            add_windows(file, runnable, config)
        found = {kv: figure(runnable, windows["evaluation"], kv) for kv in KV}
        about = {"name": name, "bits_per_weight": kept.bits_per_weight, "types": kept.types}
        report({**about, "perplexity": found})


def files(checkpoint: Path, folder: Path, calibration: list[list[int]]) -> Iterator[tuple[str, Path]]:
    """Every variant: its name and its file. The types in a file tell where llama.cpp fell back because of a row's length."""
    for float_type in FLOATS:
        path = folder / f"model-{float_type}.gguf"
        write_floats(checkpoint, path, float_type)
        yield float_type, path
    importance = mean_squares(checkpoint, calibration)
    variants = {
        "Q4_0": Quantization("Q4_0"),
        "Q4_0, pure": Quantization("Q4_0", pure=True),
        "Q4_0, pure, importance": Quantization("Q4_0", pure=True, importance=importance),
        "Q4_K_M": Quantization("Q4_K_M"),
        "Q4_K_M, importance": Quantization("Q4_K_M", importance=importance),
        "Q4_K, pure": Quantization("Q4_K_M", pure=True),
        "Q4_K, pure, importance": Quantization("Q4_K_M", pure=True, importance=importance),
    }
    for name, wanted in variants.items():
        path = folder / f"model-{name.replace(', ', '-')}.gguf"
        quantize(folder / "model-F32.gguf", path, wanted)
        yield name, path


def figure(file: Path, windows: list[list[int]], kv: str) -> float | None:
    """Perplexity; None where llama.cpp refuses the cache because blocks of 32 do not divide a head."""
    try:
        session = Session(file, max(map(len, windows)), 1, kv)
    except LlamaFault as fault:
        if "does not divide n_embd_head" in str(fault):
            return None
        raise
    found = perplexity(session.logits, windows)
    session.close()
    return found


def mean_squares(checkpoint: Path, windows: list[list[int]]) -> dict[str, np.ndarray]:
    """What llama-imatrix collects: the mean square of every input channel of every matrix in the layers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    sums: dict[str, torch.Tensor] = {}

    def listen(name: str) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            sums[name] = sums.get(name, 0) + inputs[0].detach().double().square().mean((0, 1))

        return hook

    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(listen(gguf_name(f"model.{name}.weight")))
    with torch.no_grad():
        for window in windows:
            model(torch.tensor([window]))
    return {name: (total / len(windows)).float().numpy() for name, total in sums.items()}


if __name__ == "__main__":
    main()
