"""llama.cpp (through llama-cpp-python, compiled from its source package) as a comparison peer.

python llama_cpp_peer.py build CHECKPOINT FOLDER
python llama_cpp_peer.py time FOLDER [--kv f16|q8_0|q4_0] --contexts 64 1024 2048 --tokens 24 --threads 1 --prefill 512

Llama architecture without biases or rotary scaling. Every matrix is Q4_0, the tied table included. The GGUF has no tokenizer
("no_vocab"): token ids go in, logits come out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from timing import measure, memory, peer_arguments, report

MODEL_FILE = "model-q4_0.gguf"
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
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
KV = {"f16": "GGML_TYPE_F16", "q8_0": "GGML_TYPE_Q8_0", "q4_0": "GGML_TYPE_Q4_0"}


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face rotates (i, i + D/2), the llama architecture of ggml (2i, 2i + 1)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def gguf_name(name: str) -> str:
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def write_f16(source: Path, target: Path) -> None:
    import torch  # here, because a process that times must not hold it: peak memory is one of the figures
    from safetensors import safe_open

    config = json.loads((source / "config.json").read_text())
    if config.get("model_type") != "llama" or config.get("attention_bias") or config.get("rope_scaling"):
        raise SystemExit(f"{source / 'config.json'}: only Llama without biases or rotary scaling can be written")
    writer = gguf.GGUFWriter(str(target), "llama", use_temp_file=True)
    describe(writer, config)
    heads = {"q_proj.weight": config["num_attention_heads"], "k_proj.weight": config["num_key_value_heads"]}
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as stored:
            for name in stored.keys():
                value = stored.get_tensor(name)
                array = (value.half() if value.dim() > 1 else value.to(torch.float32)).numpy()
                for ending, count in heads.items():
                    if name.endswith(ending):
                        array = np.ascontiguousarray(interleave(array, count))
                writer.add_tensor(gguf_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")


def build(source: Path, folder: Path) -> None:
    _keep, lines = quiet()
    folder.mkdir(parents=True)
    unquantized, quantized = folder / "model-f16.gguf", folder / MODEL_FILE
    write_f16(source, unquantized)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.ftype, settings.pure = 1, llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
    if llama_cpp.llama_model_quantize(str(unquantized).encode(), str(quantized).encode(), ctypes.byref(settings)):
        raise SystemExit("llama_model_quantize failed:\n" + "".join(lines)[-3000:])
    unquantized.unlink()
    report({"peer": "llama.cpp", "built": str(quantized), "file_bytes": quantized.stat().st_size})


def quiet() -> tuple[Any, list[str]]:
    """Collects the library's log; the callback must stay referenced."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _data: Any) -> None:
        lines.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    return keep, lines


class Session:
    """A loaded model with an empty cache."""

    def __init__(self, path: Path, context: int, threads: int, kv: str) -> None:
        self.keep, self.lines = quiet()
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise SystemExit(f"{path} did not load:\n" + "".join(self.lines)[-3000:])
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = llama_cpp.llama_init_from_model(self.model, self._context_settings(context, threads, kv))
        if not self.context:
            raise SystemExit("no context:\n" + "".join(self.lines)[-3000:])
        self.memory = llama_cpp.llama_get_memory(self.context)

    def _context_settings(self, context: int, threads: int, kv: str) -> Any:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = context, 512, 512, 1
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = getattr(llama_cpp, KV[kv])
        settings.flash_attn_type = -1 if kv == "f16" else 1  # automatic; a quantized V cache needs it
        settings.no_perf = True
        return settings

    def restart(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, False)

    def feed(self, ids: np.ndarray) -> None:
        for start in range(0, len(ids), 512):
            part = np.ascontiguousarray(ids[start : start + 512], np.int32)
            batch = llama_cpp.llama_batch_get_one(part.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), len(part))
            code = llama_cpp.llama_decode(self.context, batch)
            if code:
                raise SystemExit(f"llama_decode returned {code}:\n" + "".join(self.lines)[-2000:])
        llama_cpp.llama_synchronize(self.context)


def time_it(given: argparse.Namespace) -> None:
    path, at_start = given.folder / MODEL_FILE, memory("VmRSS")
    context = max([given.prefill, *(context + given.tokens for context in given.contexts)]) + 8
    session = Session(path, context, given.threads, given.kv)
    memories = {"rss_start_bytes": at_start, "rss_loaded_bytes": memory("VmRSS"), "file_bytes": path.stat().st_size}
    numbers = measure(session.restart, session.feed, session.vocab, given)
    about = {"peer": "llama.cpp", "version": f"llama-cpp-python {llama_cpp.__version__}", "kv": given.kv}
    report({**about, "threads": given.threads, **memories, **numbers})


def main() -> None:
    parser = peer_arguments(__doc__)
    parser.add_argument("--kv", choices=KV, default="f16")
    given = parser.parse_args()
    if given.command == "build":
        build(given.source, given.folder)
    else:
        time_it(given)


if __name__ == "__main__":
    main()
