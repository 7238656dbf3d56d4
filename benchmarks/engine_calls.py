"""The engine's side of `harness_vs_engine_tools`: its Python interface with a clock around the call, and recorded calls for a loop in C++.

Runs as a process of its own: python -m benchmarks.engine_calls EXPORT [--record FOLDER] < TOKENS
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.manifest import exported_recipe, read_manifest
from exporter.runtime.driver import Driver, open_driver
from exporter.targets.base import find_target

CALLS_FILE, RECORDING_FILE = "calls.json", "recording.bin"
TOKENS = "input_ids"
CACHE = ("past.", "state.")


def around(owner: Any, name: str, call: Callable[..., Any]) -> None:
    """Replaces a method of the engine's Python interface by `call(method, *arguments)`."""
    method = getattr(owner, name)
    setattr(owner, name, lambda *arguments: call(method, *arguments))


def timed_pass(driver: Driver, prompt: Sequence[int], token_ids: Sequence[int], times: list[int]) -> dict[str, Any]:
    """Feeds the very tokens that the runner chose, one warm-up and one timed pass, and says which ones the logits prefer."""
    for _ in range(2):
        driver.reset()
        driver.prompt(list(prompt))
        times.clear()
        chosen = [int(driver.decode(token).argmax()) for token in token_ids[:-1]]
    return {"token_ids": chosen, "ns": times}


class SessionRecorder:
    """Every call through `InferenceSession.run_with_iobinding`: what was bound to which memory, and what the inputs held before it. Caches
    are left out: the calls fill them, from the first one on."""

    def __init__(self) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        self._inputs: dict[Any, dict[str, Any]] = {}
        self._outputs: dict[Any, dict[str, Any]] = {}
        self._calls: list[tuple[Any, dict[str, np.ndarray]]] = []
        around(onnxruntime.IOBinding, "bind_ortvalue_input", self._bound(self._inputs))
        around(onnxruntime.IOBinding, "bind_ortvalue_output", self._bound(self._outputs))
        around(onnxruntime.InferenceSession, "run_with_iobinding", self._call)

    def _bound(self, known: dict[Any, dict[str, Any]]) -> Callable[..., Any]:
        def bind(method: Callable[..., Any], binding: Any, name: str, value: Any) -> Any:
            known.setdefault(binding, {})[name] = value
            return method(binding, name, value)

        return bind

    def _call(self, method: Callable[..., Any], session: Any, binding: Any) -> Any:
        inputs = self._inputs[binding].items()
        held = {name: value.numpy().copy() for name, value in inputs if not name.startswith(CACHE)}
        self._calls.append((binding, held))
        return method(session, binding)

    def write(self, folder: Path) -> dict[str, Any]:
        """The recording's bytes, and the description that `onnxruntime_loop` reads."""
        bindings = list(dict.fromkeys(binding for binding, _ in self._calls))
        bound = [value for one in bindings for known in (self._inputs, self._outputs) for value in known[one].values()]
        values = list({id(value): value for value in bound}.values())
        places = {id(value): place for place, value in enumerate(values)}
        calls, first = [], 0
        with (folder / RECORDING_FILE).open("wb") as file:
            for binding, held in self._calls:
                copies = []
                for name, array in held.items():
                    copies.append([places[id(self._inputs[binding][name])], first])
                    first += file.write(array.tobytes())
                timed = held[TOKENS].size == 1
                calls.append({"binding": bindings.index(binding), "timed": timed, "copies": copies})
        return {
            "recording": str(folder / RECORDING_FILE),
            "tensors": [_described(value) for value in values],
            "bindings": [
                {
                    "inputs": {name: places[id(value)] for name, value in self._inputs[one].items()},
                    "outputs": {name: places[id(value)] for name, value in self._outputs[one].items()},
                }
                for one in bindings
            ],
            "calls": calls,
        }


def _described(value: Any) -> dict[str, Any]:
    return {"shape": value.shape(), "type": value.element_type(), "bytes": value.numpy().nbytes}


class ProgramRecorder:
    """Every call of `Method.execute`: token ids and a position are all that a program for CPUs takes."""

    def __init__(self) -> None:
        from executorch.runtime import Method

        self._calls: list[dict[str, Any]] = []
        around(Method, "execute", self._call)

    def _call(self, method: Callable[..., Any], owner: Any, inputs: list[Any]) -> Any:
        self._calls.append({"tokens": inputs[0].tolist(), "position": int(inputs[1])})
        return method(owner, inputs)

    def write(self, folder: Path) -> dict[str, Any]:
        return {"calls": self._calls}


def record(folder: Path, output: Path, prompt: Sequence[int], token_ids: Sequence[int]) -> None:
    """Writes what a loop in C++ needs to repeat the calls."""
    target = find_target(exported_recipe(folder, read_manifest(folder)).target.kind)
    is_onnx = target.runtime == "onnxruntime"
    recorder = SessionRecorder() if is_onnx else ProgramRecorder()
    driver = open_driver(target.driver, folder)
    driver.prompt(list(prompt))
    for token in token_ids[:-1]:
        driver.decode(token)
    threads = json.loads((folder / "host.json").read_text(encoding="utf-8"))["threads"]
    model = str((folder / ("model.onnx" if is_onnx else "model.pte")).resolve())
    told = {"model": model, "threads": threads, **recorder.write(output)}
    (output / CALLS_FILE).write_text(json.dumps(told), encoding="utf-8")


def time_python(folder: Path, prompt: Sequence[int], token_ids: Sequence[int]) -> None:
    """Prints what the loops in C++ print."""
    target, times = find_target(exported_recipe(folder, read_manifest(folder)).target.kind), list[int]()

    def clocked(method: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter_ns()
        found = method(*arguments)
        times.append(time.perf_counter_ns() - started)
        return found

    if target.runtime == "onnxruntime":
        import onnxruntime

        around(onnxruntime.InferenceSession, "run_with_iobinding", clocked)
    else:
        from executorch.runtime import Method

        around(Method, "execute", clocked)
    print(json.dumps(timed_pass(open_driver(target.driver, folder), prompt, token_ids, times)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    prompt, token_ids = json.load(sys.stdin)
    if arguments.record is None:
        time_python(arguments.export, prompt, token_ids)
    else:
        record(arguments.export, arguments.record, prompt, token_ids)


if __name__ == "__main__":
    main()
