"""Fields of configs that many families share, no two of them equal, so that one read for another cannot agree."""

from __future__ import annotations

from typing import Any

SHAPE = {
    "vocab_size": 101,
    "hidden_size": 96,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}
MULTIPLIERS = {
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.25,
    "logits_scaling": 3.0,
}


def unusual(*left_out: str) -> dict[str, Any]:
    """Optional fields with values other than their defaults; a dictionary of its own, as transformers writes into what it is given."""
    fields = {
        "hidden_act": "gelu",
        "rms_norm_eps": 1e-3,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }
    return {name: value for name, value in fields.items() if name not in left_out}
