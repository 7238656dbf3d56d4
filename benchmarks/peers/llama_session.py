"""A llama.cpp model with its cache, through llama-cpp-python: token ids in, logits out."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

BATCH = 512
AUTOMATIC, OFF = -1, 0
KV = {"f16": "GGML_TYPE_F16", "q8_0": "GGML_TYPE_Q8_0", "q4_0": "GGML_TYPE_Q4_0"}


class LlamaFault(Exception):
    """What the library said when it refused."""


def quiet() -> tuple[Any, list[str]]:
    """Collects the library's log; the callback must stay referenced."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _data: Any) -> None:
        lines.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    return keep, lines


class Session:
    """A loaded model with an empty cache. Raises LlamaFault when the model or its cache cannot be made. `flash` leaves the choice of
    flash attention to llama.cpp, which takes it; a quantized cache cannot do without."""

    def __init__(self, path: Path, context: int, threads: int, kv: str, flash: bool = True) -> None:
        self.keep, self.lines = quiet()
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise LlamaFault(f"{path} did not load:\n" + "".join(self.lines)[-3000:])
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = llama_cpp.llama_init_from_model(self.model, self._context_settings(context, threads, kv, flash))
        if not self.context:
            raise LlamaFault("no context:\n" + "".join(self.lines)[-3000:])
        self.memory = llama_cpp.llama_get_memory(self.context)

    def _context_settings(self, context: int, threads: int, kv: str, flash: bool) -> Any:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = context, BATCH, BATCH, 1
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = getattr(llama_cpp, KV[kv])
        settings.flash_attn_type = AUTOMATIC if flash else OFF
        settings.no_perf = True
        return settings

    def restart(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, False)

    def feed(self, ids: np.ndarray) -> None:
        """Appends token ids; the library computes the logits of the last one."""
        for start in range(0, len(ids), BATCH):
            part = np.ascontiguousarray(ids[start : start + BATCH], np.int32)
            self._decode(llama_cpp.llama_batch_get_one(part.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)), len(part)))
        llama_cpp.llama_synchronize(self.context)

    def logits(self, ids: list[int]) -> np.ndarray:
        """float32 [n, V]: the logits after each of up to 512 tokens that start a conversation."""
        self.restart()
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        self._decode(batch)
        found = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.context), (len(ids), self.vocab)).copy()
        llama_cpp.llama_batch_free(batch)
        return found

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def _decode(self, batch: Any) -> None:
        code = llama_cpp.llama_decode(self.context, batch)
        if code:
            raise LlamaFault(f"llama_decode returned {code}:\n" + "".join(self.lines)[-2000:])
