"""What each rounding method, group size and cache costs in perplexity, by the oracle alone.

    python -m benchmarks.quality --model FOLDER [--calibration FILE] [--evaluation FILE] [--scales fp16] [--peers FOLDER]

Windows of 256 tokens; codecs are those of the target onnxruntime-cpu. Percent above the full-precision checkpoint. `--peers` adds what
llama.cpp's own quantizations give over the same tokens; its folder is that of benchmarks/onnx_vs_peers.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from pathlib import Path

import torch

from benchmarks.peer_environment import make_environment, peer_python, run_script
from exporter.checkpoint.checkpoint import Checkpoint, open_checkpoint
from exporter.plan import cache_settings, make_plan, recipe_layout, weight_settings
from exporter.quantize.calibration import KvCalibrator
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.quantize.quantizer import quantize_decoder
from exporter.recipe import Recipe, load_recipe
from exporter.resources import example_folder
from exporter.targets.base import find_target
from exporter.texts import Texts, read_texts
from exporter.verify.gates import percent_rise
from exporter.verify.parity import PerplexityMeter, layerwise_perplexities, window_logits

CACHES = {
    "KV 16": ("kv_cache.bits=16",),
    "KV 8": ("kv_cache.bits=8",),
    "KV 4": ("kv_cache.bits=4",),
    "KV 4, zero point": ("kv_cache.bits=4", "kv_cache.zero_point=true"),
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=example_folder() / "model")
    parser.add_argument("--calibration", type=Path, default=example_folder() / "calibration.txt")
    parser.add_argument("--evaluation", type=Path, default=example_folder() / "evaluation.txt")
    parser.add_argument("--scales", choices=("lpbq", "fp16"), default="lpbq")
    parser.add_argument("--peers", type=Path)
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.model, None)
    texts = read_texts(load_recipe("onnx-cpu"), given.calibration, given.evaluation, checkpoint.text_codec())
    sums = layerwise_perplexities(checkpoint.spec, checkpoint, texts.evaluation)
    full = math.exp(sum(sums) / sum(len(window) - 1 for window in texts.evaluation))
    print(f"full precision {full:.3f}\n\n| groups, method | bits per weight | {' | '.join(CACHES)} |")
    print(f"|---|---|{'---|' * len(CACHES)}")
    for group, method in itertools.product((32, 128), ("rtn", "search", "gptq")):
        settings = (f"weights.group_size={group}", f"weights.method={method}", f"weights.scale_format={given.scales}")
        found = perplexities(checkpoint, texts, settings)
        print(
            f"| {group}, {method} | {bits_per_weight(checkpoint, settings):.2f} "
            f"| {' | '.join(f'{percent_rise(value, full):+.2f} %' for value in found)} |",
            flush=True,
        )
    if given.peers:
        print_gguf_table(given.peers, given.model, texts, full)


def bits_per_weight(checkpoint: Checkpoint, settings: tuple[str, ...]) -> float:
    """Over all weights, as the target onnxruntime-cpu stores them."""
    recipe = load_recipe("onnx-cpu", settings)
    plan = make_plan(checkpoint.spec, recipe, find_target(recipe.target.kind))
    return 8 * plan.weight_bytes / plan.parameters


def print_gguf_table(peers: Path, model: Path, texts: Texts, full: float) -> None:
    """llama.cpp computes with activations of 8 bits where weights are quantized, so this is what a user of the file gets."""
    make_environment(peers)
    with tempfile.TemporaryDirectory() as scratch:
        windows = Path(scratch) / "windows.json"
        windows.write_text(json.dumps({"evaluation": texts.evaluation, "calibration": texts.calibration}))
        arguments = (str(model), str(windows), str(Path(scratch) / "files"))
        about, *lines = run_script(peer_python(peers), "llama_cpp_quality.py", *arguments)
    caches = list(lines[0]["perplexity"])
    print(f"\n{about['version']}\n\n| GGUF | bits per weight | types | KV {' | KV '.join(caches)} |")
    print(f"|---|---|---|{'---|' * len(caches)}")
    for line in lines:
        types = ", ".join(f"{count} {name}" for name, count in line["types"].items())
        found = [f"{percent_rise(value, full):+.2f} %" if value else "refused" for value in line["perplexity"].values()]
        print(f"| {line['name']} | {line['bits_per_weight']:.2f} | {types} | {' | '.join(found)} |")


def perplexities(checkpoint: Checkpoint, texts: Texts, settings: tuple[str, ...]) -> list[float]:
    """One per cache, from one quantization."""
    listener = KvCalibrator(checkpoint.spec)
    weights = quantize_decoder(
        checkpoint.spec,
        checkpoint,
        weight_settings(load_recipe("onnx-cpu", settings)),
        texts.calibration,
        listener.observe,
    )
    found = []
    for cache in CACHES.values():
        decoder = cached(
            QuantizedDecoder.without_cache(checkpoint.spec, weights), load_recipe("onnx-cpu", cache), listener
        )
        meter, oracle = PerplexityMeter(), decoder.oracle()
        for window in texts.evaluation:
            meter.add(window_logits(oracle, decoder.spec, window, decoder.chunk), window)
        found.append(meter.perplexity)
    return found


def cached(decoder: QuantizedDecoder, recipe: Recipe, listener: KvCalibrator) -> QuantizedDecoder:
    target, settings = find_target(recipe.target.kind), cache_settings(decoder.spec, recipe)
    layout, kv_format = recipe_layout(decoder.spec, recipe, target), target.kv_format(recipe)
    constants = listener.constants(kv_format)
    return QuantizedDecoder(
        decoder.spec, decoder.weights, layout, kv_format, constants, settings.chunk, settings.context
    )


if __name__ == "__main__":
    main()
