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
LOGITS = "logits"
CACHE = "past."


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
    """Every call of one token through `InferenceSession.run_with_iobinding`: which tensors were bound, and their bytes before it."""

    def __init__(self) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        self._inputs: dict[int, dict[str, Any]] = {}
        self._outputs: dict[int, dict[str, Any]] = {}
        self._calls: list[dict[str, np.ndarray]] = []
        self._binding: Any = None
        self.recording = False
        around(onnxruntime.IOBinding, "bind_ortvalue_input", self._bound(self._inputs))
        around(onnxruntime.IOBinding, "bind_ortvalue_output", self._bound(self._outputs))
        around(onnxruntime.InferenceSession, "run_with_iobinding", self._call)

    def _bound(self, known: dict[int, dict[str, Any]]) -> Callable[..., Any]:
        def bind(method: Callable[..., Any], binding: Any, name: str, value: Any) -> Any:
            known.setdefault(id(binding), {})[name] = value
            return method(binding, name, value)

        return bind

    def _call(self, method: Callable[..., Any], session: Any, binding: Any) -> Any:
        if self.recording:
            if self._binding not in (None, binding):
                raise ValueError("a cache grew between the calls, or states change places: take a shorter continuation")
            self._binding, inputs = binding, self._inputs[id(binding)]
            whole = not self._calls
            self._calls.append(
                {name: value.numpy().copy() for name, value in inputs.items() if whole or not name.startswith(CACHE)}
            )
        return method(session, binding)

    def write(self, folder: Path) -> dict[str, Any]:
        """The recording's bytes, and the description that `onnxruntime_loop` reads."""
        inputs, outputs = self._inputs[id(self._binding)], self._outputs[id(self._binding)]
        tensors, first = [], 0
        with (folder / RECORDING_FILE).open("wb") as file:
            for name, value in inputs.items():
                every_call = not name.startswith(CACHE)
                same = [other for other, written in outputs.items() if written is value]
                tensors.append(_described(name, value, same, True, every_call, first))
                for call in self._calls if every_call else self._calls[:1]:
                    first += file.write(call[name].tobytes())
        tensors.append(_described(LOGITS, outputs[LOGITS], [LOGITS], False, False, 0))
        return {"recording": str(folder / RECORDING_FILE), "calls": len(self._calls), "tensors": tensors}


def _described(name: str, value: Any, outputs: list[str], bound: bool, every_call: bool, first: int) -> dict[str, Any]:
    size = value.numpy().nbytes
    shape, kind = value.shape(), value.element_type()
    described = {"name": name, "shape": shape, "type": kind, "bytes": size, "outputs": outputs}
    return {**described, "input": bound, "every_call": every_call, "first": first}


class ProgramRecorder:
    """Every call of `Method.execute`: token ids and a position are all that a program for CPUs takes."""

    def __init__(self) -> None:
        from executorch.runtime import Method

        self._calls: list[dict[str, Any]] = []
        around(Method, "execute", self._call)

    recording = False

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
    recorder.recording = True
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
