"""What each rounding method, group size and cache costs in perplexity, by the oracle alone.

    python -m benchmarks.quality --model FOLDER [--calibration FILE] [--evaluation FILE] [--scales fp16]

Windows of 256 tokens; codecs are those of the target onnxruntime-cpu. Percent above the full-precision checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import torch

from exporter.checkpoint.checkpoint import Checkpoint, open_checkpoint
from exporter.plan import cache_settings, recipe_layout, weight_settings
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
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.model, None)
    texts = read_texts(load_recipe("onnx-cpu"), given.calibration, given.evaluation, checkpoint.text_codec())
    sums = layerwise_perplexities(checkpoint.spec, checkpoint, texts.evaluation)
    full = math.exp(sum(sums) / sum(len(window) - 1 for window in texts.evaluation))
    print(f"full precision {full:.3f}\n\n| groups, method | {' | '.join(CACHES)} |\n|---|{'---|' * len(CACHES)}")
    for group, method in itertools.product((32, 128), ("rtn", "search", "gptq")):
        settings = (f"weights.group_size={group}", f"weights.method={method}", f"weights.scale_format={given.scales}")
        found = perplexities(checkpoint, texts, settings)
        print(
            f"| {group}, {method} | {' | '.join(f'{percent_rise(value, full):+.2f} %' for value in found)} |",
            flush=True,
        )


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
