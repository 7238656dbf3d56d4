"""GGUF files of Llama and Qwen3 checkpoints: written from Hugging Face folders, quantized by llama.cpp itself, measured.

A file has no tokenizer ("no_vocab"): token ids go in, logits come out.

llama.cpp's architecture `qwen3` has no sliding window. Its `step35` has one per layer, and computes the same otherwise: norms of
query and key heads, rotation of half against half, dense SwiGLU in layers without experts, no gate where no gate is stored. So a
windowed Qwen3 is quantized as `qwen3`, with the types that llama.cpp picks for a tied table, and its tensors then move unchanged
into a file of architecture `step35`. That one cannot tie, so the table is in it twice: count bytes in the file before.
"""

from __future__ import annotations

import ctypes
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from llama_session import quiet

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
FLOAT_TYPES = {"F16": gguf.LlamaFileType.MOSTLY_F16, "F32": gguf.LlamaFileType.ALL_F32}
WINDOWED = "step35"


@dataclass(frozen=True)
class Quantization:
    """How llama.cpp is asked to quantize. `pure` keeps it from giving some tensors more bits; `importance` holds the mean square
    of every input channel by tensor name."""

    file_type: str
    pure: bool = False
    importance: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Stored:
    """What a file holds: bits per weight over all its tensors, and how many tensors have which type."""

    bits_per_weight: float
    types: dict[str, int]


def read_config(source: Path) -> dict[str, Any]:
    """Raises SystemExit for a checkpoint that a file written here would not compute as it is."""
    config = json.loads((source / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    scaled = config.get("rope_scaling") or rope.get("rope_type", "default") != "default"
    if config.get("model_type") not in ("llama", "qwen3") or config.get("attention_bias") or scaled:
        raise SystemExit(
            f"{source / 'config.json'}: only Llama and Qwen3 without biases or rotary scaling can be written"
        )
    return {**config, "rope_theta": config.get("rope_theta", rope.get("rope_theta"))}


def windowed_layers(config: dict[str, Any]) -> list[bool]:
    """Whether each layer has a sliding window."""
    if not config.get("use_sliding_window"):
        return [False] * config["num_hidden_layers"]
    return [kind == "sliding_attention" for kind in config["layer_types"]]


def write_floats(source: Path, target: Path, float_type: str) -> None:
    """A checkpoint as F16 or F32; vectors are F32 in both."""
    config = read_config(source)
    writer = gguf.GGUFWriter(str(target), config["model_type"], use_temp_file=True)
    describe(writer, config)
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_file_type(FLOAT_TYPES[float_type])
    for name, array in checkpoint_arrays(source, config, np.float16 if float_type == "F16" else np.float32):
        writer.add_tensor(name, array)
    finish(writer)


def checkpoint_arrays(source: Path, config: dict[str, Any], matrix_type: type) -> Iterator[tuple[str, np.ndarray]]:
    import torch  # here, because a process that times must not hold it: peak memory is one of the figures
    from safetensors import safe_open

    heads = {"q_proj.weight": config["num_attention_heads"], "k_proj.weight": config["num_key_value_heads"]}
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as stored:
            for name in stored.keys():
                value = stored.get_tensor(name).to(torch.float32).numpy()
                array = value.astype(matrix_type if value.ndim > 1 else np.float32)
                for ending, count in heads.items():
                    if name.endswith(ending) and config["model_type"] == "llama":
                        array = np.ascontiguousarray(interleave(array, count))
                yield gguf_name(name), array


def gguf_name(name: str) -> str:
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face rotates (i, i + D/2), the llama architecture of ggml (2i, 2i + 1)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(floats: Path, target: Path, wanted: Quantization) -> None:
    """Runs llama_model_quantize."""
    _keep, lines = quiet()
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.pure = 1, wanted.pure
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{wanted.file_type}")
    arrays = {name: np.ascontiguousarray(values, np.float32) for name, values in wanted.importance.items()}
    if arrays:
        entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
        for entry, (name, values) in zip(
            entries, arrays.items(), strict=False
        ):  # an entry without a name ends the list
            pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.name, entry.data, entry.size = name.encode(), pointer, values.size
        settings.imatrix = ctypes.cast(entries, type(settings.imatrix))
    if llama_cpp.llama_model_quantize(str(floats).encode(), str(target).encode(), ctypes.byref(settings)):
        raise SystemExit("llama_model_quantize failed:\n" + "".join(lines)[-3000:])


def add_windows(file: Path, target: Path, config: dict[str, Any]) -> None:
    """The tensors of a `qwen3` file, byte for byte, in an architecture that has sliding windows."""
    writer = gguf.GGUFWriter(str(target), WINDOWED)
    describe(writer, config)
    writer.add_rope_dimension_count(2 * config["head_dim"])  # this architecture halves it where there is no window
    writer.add_uint32(f"{WINDOWED}.rope.dimension_count_swa", config["head_dim"])
    writer.add_float32(f"{WINDOWED}.rope.freq_base_swa", config["rope_theta"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern(windowed_layers(config))
    writer.add_expert_feed_forward_length(0)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    if "output.weight" not in tensors:
        tensors["output.weight"] = tensors["token_embd.weight"]
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
    finish(writer)


def stored(file: Path) -> Stored:
    tensors = gguf.GGUFReader(file).tensors
    bits = 8 * sum(tensor.n_bytes for tensor in tensors) / sum(tensor.n_elements for tensor in tensors)
    return Stored(float(bits), dict(sorted(Counter(tensor.tensor_type.name for tensor in tensors).items())))
