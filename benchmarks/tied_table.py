"""What storing a tied table once saves in a .pte, for a vocabulary of 32,000 and a width of 1,024.

    python -m benchmarks.tied_table --work FOLDER [--layers 1 4]

Exports random weights through `android-cpu`. Every such export runs the program with two copies of the table and with one, and fails
unless the logits are equal to the bit; the sizes of both are in its report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.onnx_vs_peers import QUICK
from benchmarks.shapes import FOUR_LAYERS, write_random_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4])
    given = parser.parse_args()
    for layers in given.layers:
        print(json.dumps({"layers": layers, **sizes(given.work / f"layers-{layers}", layers)}), flush=True)


def sizes(folder: Path, layers: int) -> dict[str, float]:
    """Bytes of the file with two copies and with one, and their ratio."""
    checkpoint, output = folder / "checkpoint", folder / "out"
    if not checkpoint.is_dir():
        write_random_checkpoint({**FOUR_LAYERS, "num_hidden_layers": layers}, checkpoint)
    overrides = [part for setting in (*QUICK, "cache.context=512") for part in ("--set", setting)]
    command = ["--recipe", "android-cpu", "--model", str(checkpoint), "--output", str(output), "--force"]
    subprocess.run([sys.executable, "-m", "exporter", *command, *overrides], check=True, stdout=subprocess.DEVNULL)
    artifact = json.loads((output / "report.json").read_text(encoding="utf-8"))["artifact"]
    untied, tied = artifact["bytes_before_aliasing"], (output / "model.pte").stat().st_size
    return {"untied_bytes": untied, "tied_bytes": tied, "ratio": round(tied / untied, 3)}


if __name__ == "__main__":
    main()
