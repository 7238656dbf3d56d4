"""Generates text from an ONNX export with onnxruntime, numpy and tokenizers alone: everything that a host must do.

    python examples/onnx_generate.py out/onnx-cpu "Once upon a time" 40

Models without sinks only: with sinks, a chunk must not run past the end of a ring (see docs/guides/export-for-onnx.md).
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, prompt, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
host = json.loads((folder / "host.json").read_text(encoding="utf-8"))
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
types = {"tensor(int8)": np.int8, "tensor(uint8)": np.uint8, "tensor(float16)": np.float16, "tensor(float)": np.float32}
wanted = {item.name for item in session.get_inputs()}  # with onnx.attention=gqa, neither `held` nor `write_slot`

rings = {name: ring["slots"] for name, ring in host["rings"].items()}
held = {name: np.full(slots, np.iinfo(np.int64).max) for name, slots in rings.items()}
caches, states = {}, {}
for item in session.get_inputs():
    if item.name.startswith("state."):
        zeros = np.zeros(item.shape, np.float32)
        states[item.name[len("state.") :]] = onnxruntime.OrtValue.ortvalue_from_numpy(zeros)
    if item.name.startswith("past."):
        shape = [rings[size[len("slots.") :]] if isinstance(size, str) else size for size in item.shape]
        caches[item.name[len("past.") :]] = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, types[item.type]))


def step(token_ids: list[int], start: int) -> int:
    """Appends tokens at position `start` and returns the likeliest next one. Cached tensors are updated in place; the states of
    recurrent layers come back as new tensors."""
    positions, binding = np.arange(start, start + len(token_ids)), session.io_binding()
    inputs = {
        "input_ids": np.array([token_ids]),
        "positions": positions[None],
        "logit_rows": np.array([len(token_ids) - 1]),
    }
    for name, slots in rings.items():
        held[name][positions % slots] = positions
        inputs |= {f"held.{name}": held[name], f"write_slot.{name}": positions[:1] % slots}
    for name in inputs.keys() & wanted:
        binding.bind_cpu_input(name, inputs[name])
    for name, cache in caches.items():
        binding.bind_ortvalue_input(f"past.{name}", cache)
        binding.bind_ortvalue_output(f"present.{name}", cache)
    for name, state in states.items():
        binding.bind_ortvalue_input(f"state.{name}", state)
        binding.bind_output(f"next_state.{name}")
    binding.bind_output("logits")
    session.run_with_iobinding(binding)
    *others, logits = binding.get_outputs()
    states.update(zip(states, others[len(caches) :], strict=True))
    return int(logits.numpy()[0, -1].argmax())


tokens = [settings["bos_token_id"], *tokenizer.encode(prompt, add_special_tokens=False).ids]
for at in range(0, len(tokens), host["chunk"]):
    following = step(tokens[at : at + host["chunk"]], at)
last = min(host["context"], len(tokens) + limit)
while following != settings["eos_token_id"] and len(tokens) < last:
    tokens.append(following)
    following = step([following], len(tokens) - 1)
print(tokenizer.decode(tokens))
