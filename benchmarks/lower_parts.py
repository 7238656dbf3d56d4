"""Where the time of the Qualcomm lowering goes, part by part, for SmolLM2-135M's shape.

    python -m benchmarks.lower_parts [--slots 1055 1056 ...]

One process, so that imports, ranges and each compilation can be told apart. `--slots` compiles the decode method alone for
other cache lengths instead. The compiler's own summary lines, with the bytes that its schedule spills, come on standard output too.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.shapes import SMOLLM2_135M, write_random_checkpoint
from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.decoder.cache import LayerCache
from exporter.plan import cache_settings, recipe_layout, weight_settings
from exporter.quantize.calibration import KvCalibrator
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.quantize.quantizer import quantize_decoder
from exporter.recipe import load_recipe
from exporter.targets.base import find_target
from exporter.targets.executorch.qnn import sdk


@contextmanager
def timed(name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    ctypes.CDLL(None).fflush(None)
    print(f"{name:<32} {time.process_time() - start:6.1f} CPU s", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, nargs="*", default=[])
    slots = parser.parse_args().slots
    sdk.prepare_environment()
    with timed("imports"):
        from exporter.targets.executorch.qnn.compile import compile_graphs
        from exporter.targets.executorch.qnn.lower import build_graphs, calibrate_activations, extend_encodings

    decoder = quantized_decoder()
    sdk.load_libraries()
    windows = torch.randint(0, 2048, (8, 256), generator=torch.Generator().manual_seed(0)).tolist()
    for count in slots or [decoder.layout[0].slots]:
        sized = replace(decoder, layout=(LayerCache(count),) * len(decoder.layout), context=count)
        with timed("build graphs"):
            graphs = build_graphs(sized)
        with timed(f"ranges, {256 * len(windows)} tokens"):
            encodings = calibrate_activations(sized, windows, lambda event: None)
            for graph in graphs.values():
                encodings = extend_encodings(graph, encodings)
        for name in ("decode",) if slots else graphs:
            with timed(f"compile {name}, {count} slots"):
                compile_graphs([graphs[name]], encodings, "SM8650", share_weights=False)
        if not slots:
            with timed("compile both, shared weights"):
                compile_graphs(list(graphs.values()), encodings, "SM8650", share_weights=True)


def quantized_decoder() -> QuantizedDecoder:
    """Rounded to nearest: the time of a compilation does not depend on how codes were chosen."""
    recipe = load_recipe("android-npu", ("weights.method=rtn",))
    target = find_target(recipe.target.kind)
    with tempfile.TemporaryDirectory() as scratch:
        write_random_checkpoint(SMOLLM2_135M, Path(scratch) / "model")
        checkpoint = open_checkpoint(Path(scratch) / "model", None)
        listener = KvCalibrator(checkpoint.spec)
        text = torch.randint(0, 2048, (1, 256), generator=torch.Generator().manual_seed(1)).tolist()
        weights = quantize_decoder(checkpoint.spec, checkpoint, weight_settings(recipe), text, listener.observe)
    spec, kv_format, settings = checkpoint.spec, target.kv_format(recipe), cache_settings(checkpoint.spec, recipe)
    layout, constants = recipe_layout(spec, recipe, target), listener.constants(kv_format)
    return QuantizedDecoder(spec, weights, layout, kv_format, constants, settings.chunk, settings.context)


if __name__ == "__main__":
    main()
