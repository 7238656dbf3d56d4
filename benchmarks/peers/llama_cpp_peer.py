"""llama.cpp (through llama-cpp-python, compiled from its source package) as a comparison peer.

python llama_cpp_peer.py build SRC DST [--head q4_0|q6_k] [--keep-f16]      (DST: a folder; the model is DST/model-q4_0.gguf)
python llama_cpp_peer.py time DST --contexts 64 1024 2048 --tokens 24 --threads 1 --prefill 512 [--kv f16|q8_0|q4_0] [--flash auto|on|off]
python llama_cpp_peer.py logits DST IDS.npy OUT.npy [--file model-f16.gguf]

Llama architecture only. The GGUF has no tokenizer ("no_vocab"): token ids go in, logits come out.
--head q4_0 (default) quantises the tied embedding/head to 4 bits like everything else; q6_k is what llama-quantize's plain Q4_0 does.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import time
from pathlib import Path

import numpy as np
from timing import measure, memory, report

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
KV = {"f16": "GGML_TYPE_F16", "q8_0": "GGML_TYPE_Q8_0", "q4_0": "GGML_TYPE_Q4_0"}


def interleave(weight, heads: int):
    """Hugging Face rotates (i, i + D/2), the llama architecture of ggml (2i, 2i + 1)."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def rope_factors(config: dict, head_dim: int, theta: float) -> np.ndarray | None:
    """The divisor of each rotation frequency for rope type llama3; None for plain RoPE."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise SystemExit(f"rope type {kind!r} is not written by this script")
    factor, low, high, old = (
        rope[k] for k in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    result = []
    for frequency in theta ** -(np.arange(0, head_dim, 2) / head_dim):
        length = 2 * math.pi / frequency
        if length < old / high:
            result.append(1.0)
        elif length > old / low:
            result.append(factor)
        else:
            smooth = (old / length - low) / (high - low)
            result.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(result, np.float32)


def write_f16(source: Path, target: Path) -> None:
    import gguf
    import torch
    from safetensors import safe_open

    c = json.loads((source / "config.json").read_text())
    if c.get("model_type") != "llama" or c.get("attention_bias") or c.get("mlp_bias"):
        raise SystemExit("only the Llama architecture without biases is written by this script")
    heads, kv_heads = c["num_attention_heads"], c.get("num_key_value_heads", c["num_attention_heads"])
    head_dim = c.get("head_dim") or c["hidden_size"] // heads
    theta = c.get("rope_theta") or (c.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    w = gguf.GGUFWriter(str(target), "llama", use_temp_file=True)
    w.add_name(source.name)
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_rope_dimension_count(head_dim)
    w.add_rope_freq_base(theta)
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_tokenizer_model("no_vocab")
    factors = rope_factors(c, head_dim, theta)
    if factors is not None:
        w.add_tensor("rope_freqs.weight", factors)

    def name_of(name: str) -> str:
        if not name.startswith("model.layers."):
            return {
                "model.embed_tokens.weight": "token_embd.weight",
                "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight",
            }[name]
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"

    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            for name in f.keys():
                if name == "lm_head.weight" and c.get("tie_word_embeddings"):
                    continue
                value = f.get_tensor(name)
                value = (value.half() if value.dim() > 1 else value.to(torch.float32)).numpy()
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    value = np.ascontiguousarray(interleave(value, heads if "q_proj" in name else kv_heads))
                w.add_tensor(name_of(name), value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def quiet(llama_cpp):
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level, text, _data):
        lines.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    return keep, lines


def build(a: argparse.Namespace) -> None:
    import llama_cpp

    _keep, lines = quiet(llama_cpp)
    start = time.time()
    a.dst.mkdir(parents=True, exist_ok=True)
    f16, q4 = a.dst / "model-f16.gguf", a.dst / "model-q4_0.gguf"
    write_f16(a.src, f16)
    p = llama_cpp.llama_model_quantize_default_params()
    p.nthread = 1
    p.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    p.pure = a.head == "q4_0"
    if llama_cpp.llama_model_quantize(str(f16).encode(), str(q4).encode(), ctypes.byref(p)):
        raise SystemExit("llama_model_quantize failed:\n" + "".join(lines)[-3000:])
    if not a.keep_f16:
        f16.unlink()
    from gguf import GGUFReader

    types: dict[str, int] = {}
    for tensor in GGUFReader(q4).tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    report(
        {
            "peer": "llama.cpp",
            "built": str(q4),
            "head": a.head,
            "tensor_types": types,
            "seconds": round(time.time() - start, 1),
            "file_bytes": q4.stat().st_size,
        }
    )


class Session:
    def __init__(self, path: Path, n_ctx: int, threads: int, kv: str, flash: str, mmap: bool = True):
        import llama_cpp

        self.lib = llama_cpp
        self.keep, self.lines = quiet(llama_cpp)
        llama_cpp.llama_backend_init()
        mp = llama_cpp.llama_model_default_params()
        mp.n_gpu_layers = 0
        if hasattr(mp, "use_mmap"):
            mp.use_mmap = mmap
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), mp)
        if not self.model:
            raise SystemExit("the model did not load:\n" + "".join(self.lines)[-3000:])
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        cp = llama_cpp.llama_context_default_params()
        cp.n_ctx, cp.n_batch, cp.n_ubatch, cp.n_seq_max = n_ctx, 512, 512, 1
        cp.n_threads = cp.n_threads_batch = threads
        cp.type_k = cp.type_v = getattr(llama_cpp, KV[kv])
        if flash == "auto" and kv != "f16":
            flash = "on"  # a quantised V cache needs it
        cp.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[flash]
        cp.no_perf = True
        self.context = llama_cpp.llama_init_from_model(self.model, cp)
        if not self.context:
            raise SystemExit("no context:\n" + "".join(self.lines)[-3000:])
        self.memory = llama_cpp.llama_get_memory(self.context)

    def restart(self) -> None:
        self.lib.llama_memory_clear(self.memory, False)

    def feed(self, ids: np.ndarray) -> None:
        for start in range(0, len(ids), 512):
            part = np.ascontiguousarray(ids[start : start + 512], np.int32)
            batch = self.lib.llama_batch_get_one(part.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), len(part))
            code = self.lib.llama_decode(self.context, batch)
            if code:
                raise SystemExit(f"llama_decode returned {code}:\n" + "".join(self.lines)[-2000:])
        self.lib.llama_synchronize(self.context)

    def logits(self) -> np.ndarray:
        return np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, -1), (self.vocab,)).copy()

    def said(self, *words: str) -> list[str]:
        return [line.strip() for line in "".join(self.lines).splitlines() if any(word in line for word in words)]


def time_it(a: argparse.Namespace) -> None:
    start_rss = memory("VmRSS")
    n_ctx = max([a.prefill, *(c + a.tokens for c in a.contexts)]) + 8
    session = Session(a.dst / a.file, n_ctx, a.threads, a.kv, a.flash, not a.no_mmap)
    loaded_rss = memory("VmRSS")
    numbers = measure(session.restart, session.feed, session.vocab, a.contexts, a.tokens, a.prefill, a.prefill_repeats)
    report(
        {
            "peer": "llama.cpp",
            "version": f"llama-cpp-python {session.lib.__version__}",
            "model": str(a.dst / a.file),
            "threads": a.threads,
            "kv": a.kv,
            "flash": a.flash,
            "mmap": not a.no_mmap,
            "file_bytes": (a.dst / a.file).stat().st_size,
            "rss_start_bytes": start_rss,
            "rss_loaded_bytes": loaded_rss,
            **numbers,
            "log": session.said("flash_attn", "Flash Attention", "buffer size", "REPACK"),
        }
    )


def logits(a: argparse.Namespace) -> None:
    prompt = np.load(a.ids).astype(np.int32)
    session = Session(a.dst / a.file, len(prompt) + 8, 1, a.kv, a.flash)
    session.feed(prompt[: len(prompt) // 2])
    for token in prompt[len(prompt) // 2 :]:  # half prefill, half decode steps
        session.feed(np.array([token], np.int32))
    np.save(a.out, session.logits())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    c = commands.add_parser("build")
    c.add_argument("src", type=Path)
    c.add_argument("dst", type=Path)
    c.add_argument("--head", choices=("q4_0", "q6_k"), default="q4_0")
    c.add_argument("--keep-f16", action="store_true")
    c.set_defaults(run=build)
    for name, run in (("time", time_it), ("logits", logits)):
        c = commands.add_parser(name)
        c.add_argument("dst", type=Path)
        c.add_argument("--file", default="model-q4_0.gguf")
        c.add_argument("--kv", choices=tuple(KV), default="f16")
        c.add_argument("--flash", choices=("auto", "on", "off"), default="auto")
        c.set_defaults(run=run)
        if name == "time":
            c.add_argument("--contexts", type=int, nargs="+", default=[64, 1024, 2048])
            c.add_argument("--tokens", type=int, default=24)
            c.add_argument("--threads", type=int, default=1)
            c.add_argument("--prefill", type=int, default=512)
            c.add_argument("--prefill-repeats", type=int, default=2)
            c.add_argument("--no-mmap", action="store_true")
        else:
            c.add_argument("ids", type=Path)
            c.add_argument("out", type=Path)
    a = parser.parse_args()
    a.run(a)


if __name__ == "__main__":
    main()
