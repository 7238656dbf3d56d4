"""A config with unusual fields is refused or computes the logits of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_cases import ORIGINAL, YARN, Case, llama, qwen2, qwen3, rope
from gemma_cases import gemma3
from random_checkpoint import (
    CHUNKS,
    PREFILL,
    TOLERANCE,
    WINDOW,
    decoder_logits,
    edit_config,
    largest_error,
    load_reference,
    random_tokens,
    reference_logits,
    save_random_checkpoint,
)

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.errors import CheckpointError

UNUSUAL = {
    "tie_word_embeddings with a head of its own": Case(llama(), {}, changes={"tie_word_embeddings": True}),
    "rope_scaling beside rope_parameters": Case(
        llama(head_dim=32),
        {},
        changes={"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}},
    ),
    "original_max_position_embeddings outside rope_parameters": Case(
        llama(head_dim=32),
        {},
        changes={
            "rope_parameters": rope("yarn", factor=4.0),
            "original_max_position_embeddings": ORIGINAL,
        },
    ),
    "yarn with mscale": Case(llama(head_dim=32, rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}), {}),
    "yarn with factor null": Case(
        llama(head_dim=32, rope_parameters=YARN), {}, changes={"rope_parameters": YARN | {"factor": None}}
    ),
    "partial_rotary_factor of a family that rotates all": Case(llama(), {}, changes={"partial_rotary_factor": 0.5}),
    "qwen2 without max_window_layers": Case(
        qwen2(use_sliding_window=True, sliding_window=WINDOW), {}, ("layer_types", "max_window_layers")
    ),
    "qwen3 without max_window_layers": Case(
        qwen3(use_sliding_window=True, sliding_window=WINDOW), {}, ("layer_types", "max_window_layers")
    ),
    "gemma3_text with a cap that transformers leaves unused": Case(gemma3(attn_logit_softcapping=2.0), {}),
    "gemma3_text with flat rope_parameters": Case(gemma3(), {}, changes={"rope_parameters": rope("default")}),
    "gemma3_text with bidirectional attention": Case(gemma3(use_bidirectional_attention=True), {}),
    "qwen3 with window null": Case(
        qwen3(), {}, ("layer_types",), {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}
    ),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in UNUSUAL.items()])
def test_unusual_config_is_refused_or_equals_transformers(tmp_path: Path, case: Case) -> None:
    folder = save_random_checkpoint(tmp_path, case.config)
    edit_config(folder, case.removed, **case.changes)
    token_ids = random_tokens(PREFILL)
    theirs = reference_logits(load_reference(folder), token_ids)
    try:
        checkpoint = open_checkpoint(folder)
    except CheckpointError:
        return
    assert largest_error(decoder_logits(checkpoint.spec, checkpoint, token_ids, CHUNKS), theirs) < TOLERANCE
