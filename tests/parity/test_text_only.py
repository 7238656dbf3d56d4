"""The text decoder of checkpoints with image towers: its logits are those of the whole, given text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoint import (
    CHUNKS,
    CONTEXT,
    PREFILL,
    STEPS,
    TOLERANCE,
    VOCABULARY,
    WINDOW,
    decoder_logits,
    edit_config,
    largest_error,
    random_tokens,
    reference_logits,
    tiny_shape,
)
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.errors import CheckpointError


def gemma3() -> PreTrainedModel:
    text = tiny_shape(head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=4, sliding_window_pattern=3)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=90)
    return Gemma3ForConditionalGeneration(config)


def qwen2_vl(**changes: Any) -> PreTrainedModel:
    rotary = {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 14}
    text = tiny_shape(rope_parameters=rotary, use_sliding_window=False)
    tokens = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **tokens))


WHOLES = {"gemma3": gemma3, "qwen2_vl": qwen2_vl}


def saved_whole(name: str, folder: Path) -> PreTrainedModel:
    """A whole with random weights of the sizes that training leaves."""
    torch.manual_seed(0)
    model = WHOLES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.dim() == 1 else parameter.normal_(0, parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", WHOLES)
def test_the_text_decoder_computes_what_the_whole_does(name: str, tmp_path: Path) -> None:
    model, token_ids = saved_whole(name, tmp_path), random_tokens(PREFILL + STEPS, 90)
    checkpoint = open_checkpoint(tmp_path, text_only=True)
    assert checkpoint.spec.vocab_size == VOCABULARY
    ours = decoder_logits(checkpoint.spec, checkpoint, token_ids, CHUNKS, CONTEXT)
    assert largest_error(ours, reference_logits(model, token_ids)) < TOLERANCE


@pytest.mark.parametrize("prefix", ["", "language_model."])
def test_former_names_of_the_decoder_inside_a_whole(prefix: str, tmp_path: Path) -> None:
    """Names before transformers 5: the decoder's own, or all of them behind a prefix."""
    saved_whole("qwen2_vl", tmp_path)
    right = open_checkpoint(tmp_path, text_only=True).weight("layers.2.attention.value")
    file = tmp_path / "model.safetensors"
    renamed = {former_name(name, prefix): tensor for name, tensor in load_file(file).items()}
    save_file(renamed, file)
    assert torch.equal(open_checkpoint(tmp_path, text_only=True).weight("layers.2.attention.value"), right)


def former_name(name: str, prefix: str) -> str:
    return f"{prefix}{name.replace('model.language_model.', 'model.')}"


def test_a_whole_in_one_config_and_with_its_former_rotary_rule(tmp_path: Path) -> None:
    saved_whole("qwen2_vl", tmp_path)
    right = open_checkpoint(tmp_path, text_only=True).spec
    inner = tiny_shape(rms_norm_eps=1e-5, rope_theta=500.0, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]})
    edit_config(tmp_path, ("text_config",), **inner)
    assert open_checkpoint(tmp_path, text_only=True).spec == right


def test_without_the_option_a_whole_is_refused_and_the_option_named(tmp_path: Path) -> None:
    saved_whole("gemma3", tmp_path)
    with pytest.raises(
        CheckpointError, match=r"vision towers.*text decoder is a gemma3_text.*export it with --text-only"
    ):
        open_checkpoint(tmp_path)
