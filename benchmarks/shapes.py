"""Random-weight checkpoints of well-known shapes: what an export costs does not depend on what the weights say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from exporter.checkpoint.config import Config
from exporter.checkpoint.family import find_family
from exporter.decoder.weight_names import WeightKind, decoder_weights
from exporter.resources import example_folder

SMOLLM2_135M = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}

FOUR_LAYERS = {
    **SMOLLM2_135M,
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 16384,
    "rope_theta": 10000.0,
}

LLAMA_1B = {
    **SMOLLM2_135M,
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 16384,
    "rope_theta": 500000.0,
}

GEMMA3_1B = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 262144,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}

QWEN3_MOE_1B = {
    **SMOLLM2_135M,
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "moe_intermediate_size": 512,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 16384,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
}

SHAPES = {
    "smollm2-135m": SMOLLM2_135M,
    "four-layers": FOUR_LAYERS,
    "llama-1b": LLAMA_1B,
    "gemma3-1b": GEMMA3_1B,
    "qwen3-moe-1b": QWEN3_MOE_1B,
}


def write_random_checkpoint(config: dict, folder: Path, seed: int = 0) -> None:
    """Writes config, bf16 weights with the variance of a trained model's, and the example's tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    family = find_family(Config(config))
    weights = family.weights(Config(config))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for weight in decoder_weights(family.decoder_spec(Config(config))):
        if weight.kind is WeightKind.VECTOR:
            values = torch.ones(weight.shape)
        else:
            values = torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5
        tensors[weights.source(weight.name).tensor] = values.bfloat16()
    save_file(tensors, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(example_folder() / "model" / name, folder / name)
