"""Published small members beyond the one that each family names: values of their `config.json`, and how many parameters they have.

The members of families with a recurrent state are in the families' own modules. Values are as printed in litgpt's table of configurations
and in public copies of the models' `config.json`, else as transformers' configuration defaults state; counts are as model hubs print them.
"""

from __future__ import annotations

from typing import Any

from exporter.checkpoint.family import all_families


def llama(**values: Any) -> dict[str, Any]:
    usual = {"model_type": "llama", "rms_norm_eps": 1e-05, "hidden_act": "silu"}
    return usual | values


def qwen3(**values: Any) -> dict[str, Any]:
    usual = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8}
    return usual | {"rms_norm_eps": 1e-06, "rope_theta": 1000000, "max_position_embeddings": 40960} | values


LLAMA3_ROTARY = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
MORE_MEMBERS: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3.2-3B": (
        llama(
            vocab_size=128256,
            hidden_size=3072,
            intermediate_size=8192,
            num_hidden_layers=28,
            num_attention_heads=24,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=131072,
            rope_theta=500000.0,
            rope_scaling=LLAMA3_ROTARY,
            tie_word_embeddings=True,
        ),
        3_212_749_824,
    ),
    "TinyLlama-1.1B": (
        llama(
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            rope_theta=10000.0,
            tie_word_embeddings=False,
        ),
        1_100_048_384,
    ),
    "Qwen3-1.7B": (
        qwen3(
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            tie_word_embeddings=True,
        ),
        1_720_574_976,
    ),
    "Qwen3-4B": (
        qwen3(
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            tie_word_embeddings=True,
        ),
        4_022_468_096,
    ),
    "Qwen3-8B": (
        qwen3(
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=36,
            num_attention_heads=32,
            tie_word_embeddings=False,
        ),
        8_190_735_360,
    ),
    "phi-4": (
        {
            "model_type": "phi3",
            "vocab_size": 100352,
            "hidden_size": 5120,
            "intermediate_size": 17920,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 10,
            "max_position_embeddings": 16384,
            "original_max_position_embeddings": 16384,
            "rms_norm_eps": 1e-05,
            "rope_theta": 250000,
            "rope_scaling": None,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        14_659_507_200,
    ),
    "gemma-3-4b text decoder": (
        {
            "model_type": "gemma3",
            "vision_config": {"model_type": "siglip_vision_model"},
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
        },
        3_880_263_168,
    ),
}
"""The last count is what 4,300,079,472 published parameters leave without an image tower (416,866,032) and its projection (2,950,272)."""

STANDING_FOR_THEIR_FAMILIES = {
    family.published.name: ({"model_type": family.model_type, **family.published.config}, family.published.parameters)
    for family in (all_families().get(name) for name in all_families())
}
MEMBERS = STANDING_FOR_THEIR_FAMILIES | MORE_MEMBERS
