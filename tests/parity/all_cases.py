"""The cases of every family by name; a name begins with its family's."""

from __future__ import annotations

from expert_cases import EXPERT_CASES
from family_cases import CASES as LLAMA_SHAPED
from gemma_cases import GEMMA_CASES
from gpt_cases import GPT_CASES
from phi_cases import PHI_CASES
from recurrent_cases import RECURRENT_CASES

CASES = LLAMA_SHAPED | GEMMA_CASES | PHI_CASES | GPT_CASES | EXPERT_CASES | RECURRENT_CASES

FULLEST = {
    "granite": "granite",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3_text",
    "llama": "llama-mlp-bias",
    "mistral": "mistral-window",
    "qwen2": "qwen2-upper-layers",
    "qwen3": "qwen3-layer-types-bias",
    "gemma": "gemma-untied-bias",
    "olmo2": "olmo2",
    "phi": "phi",
    "phi3": "phi3-longrope-long-context",
    "smollm3": "smollm3-windows",
    "stablelm": "stablelm",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "falcon": "falcon-sequential-alibi",
    "mpt": "mpt",
    "bloom": "bloom",
    "deepseek_v2": "deepseek_v2",
    "deepseek_v3": "deepseek_v3",
    "gpt_oss": "gpt_oss",
    "olmoe": "olmoe",
    "mixtral": "mixtral",
    "qwen2_moe": "qwen2_moe",
    "qwen3_moe": "qwen3_moe",
    "lfm2": "lfm2",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "bamba": "bamba",
    "jamba": "jamba",
    "granitemoehybrid": "granitemoehybrid",
    "falcon_h1": "falcon_h1",
    "zamba2": "zamba2",
}
"""The case of each family that has most of its switches on."""
