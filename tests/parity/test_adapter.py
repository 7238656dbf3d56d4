"""LoRA adapters merge into the weights W + scaling * B A of PEFT, and give the logits of transformers with those."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_checkpoint import (
    BREAKAGE,
    CHUNKS,
    PREFILL,
    TOLERANCE,
    decoder_logits,
    largest_error,
    load_reference,
    random_tokens,
    reference_logits,
    save_random_checkpoint,
    tiny_shape,
)
from safetensors.torch import save_file
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen3Config

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.errors import CheckpointError

RANK, ALPHA = 4, 6
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

Sides = dict[str, tuple[torch.Tensor, torch.Tensor]]
Scaling = Callable[[str], float]

CONFIGS = {
    "llama": LlamaConfig(**tiny_shape(attention_bias=True, head_dim=16)),
    "mistral": MistralConfig(**tiny_shape(sliding_window=16)),
    "qwen2": Qwen2Config(**tiny_shape(tie_word_embeddings=True)),
    "qwen3": Qwen3Config(**tiny_shape(head_dim=16)),
}
TOKENS = random_tokens(PREFILL)


def random_sides(model: PreTrainedModel, kinds: tuple[str, ...], ranks: dict[str, int] | None = None) -> Sides:
    """Random A [r, in] and B [out, r] for every linear module of these kinds; `ranks` by end of the name."""
    generator, sides = torch.Generator().manual_seed(7), {}
    for name, module in model.named_modules():
        if name.endswith(kinds):
            rank = next((value for end, value in (ranks or {}).items() if name.endswith(end)), RANK)
            down = torch.randn(rank, module.in_features, generator=generator) * 0.2
            up = torch.randn(module.out_features, rank, generator=generator) * 0.2
            sides[name] = down, up
    return sides


def write_adapter(
    folder: Path,
    sides: Sides,
    saved: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Path:
    """An adapter folder as PEFT's save_pretrained lays it out; `saved` are whole tensors (modules_to_save)."""
    folder.mkdir()
    tensors = {}
    for name, (down, up) in sides.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down.to(dtype).contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = up.to(dtype).contiguous()
    for name, values in (saved or {}).items():
        tensors[f"base_model.model.{name}"] = values
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.rsplit(".", 1)[-1] for name in sides})
    defaults = {
        "alpha_pattern": {},
        "base_model_name_or_path": "random",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "rank_pattern": {},
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(defaults | settings), encoding="utf-8")
    return folder


@torch.no_grad()
def merge_by_hand(model: PreTrainedModel, sides: Sides, scaling: Scaling) -> PreTrainedModel:
    """Sets W + scaling * B A in transformers' own modules."""
    for name, (down, up) in sides.items():
        model.get_submodule(name).weight += scaling(name) * (up @ down)
    return model


def merged_logits(base: Path, adapter: Path | None) -> torch.Tensor:
    checkpoint = open_checkpoint(base, adapter)
    return decoder_logits(checkpoint.spec, checkpoint, TOKENS, CHUNKS)


@pytest.fixture
def llama_base(tmp_path: Path) -> Path:
    return save_random_checkpoint(tmp_path / "base", CONFIGS["llama"])


@pytest.mark.parametrize(
    "kinds", [ATTENTION, FEED_FORWARD, (*ATTENTION, *FEED_FORWARD)], ids=["attention", "mlp", "all"]
)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_merged_adapter_equals_weights_merged_by_hand(
    tmp_path: Path, config: PreTrainedConfig, kinds: tuple[str, ...]
) -> None:
    base = save_random_checkpoint(tmp_path / "base", config)
    model = load_reference(base)
    sides = random_sides(model, kinds)
    assert len(sides) == len(kinds) * config.num_hidden_layers
    adapter = write_adapter(tmp_path / "adapter", sides)
    theirs = reference_logits(merge_by_hand(model, sides, lambda _: ALPHA / RANK), TOKENS)
    assert largest_error(merged_logits(base, adapter), theirs) < TOLERANCE
    assert largest_error(merged_logits(base, None), theirs) > BREAKAGE


PATTERNS: dict[str, tuple[dict[str, Any], dict[str, int], Scaling]] = {
    "rslora": ({"use_rslora": True}, {}, lambda _: ALPHA / math.sqrt(RANK)),
    "rank pattern": (
        {"rank_pattern": {"q_proj": 2}},
        {"q_proj": 2},
        lambda name: ALPHA / (2 if name.endswith("q_proj") else RANK),
    ),
    "alpha pattern by module": (
        {"alpha_pattern": {"k_proj": 24}},
        {},
        lambda name: (24 if name.endswith("k_proj") else ALPHA) / RANK,
    ),
    "alpha pattern by layer": (
        {"alpha_pattern": {r"layers\.1\.self_attn\.v_proj": 24}},
        {},
        lambda name: (24 if ".1." in name and name.endswith("v_proj") else ALPHA) / RANK,
    ),
    "alpha pattern from the root": (
        {"alpha_pattern": {"^model.layers.2.self_attn.o_proj": 24}},
        {},
        lambda name: (24 if name == "model.layers.2.self_attn.o_proj" else ALPHA) / RANK,
    ),
    "alpha and rank patterns with rslora": (
        {"alpha_pattern": {"o_proj": 3}, "rank_pattern": {"o_proj": 2}, "use_rslora": True},
        {"o_proj": 2},
        lambda name: 3 / math.sqrt(2) if name.endswith("o_proj") else ALPHA / math.sqrt(RANK),
    ),
    "the first of two alpha patterns": (
        {"alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 24, "q_proj": 2}},
        {},
        lambda name: (24 if ".0." in name else 2) / RANK if name.endswith("q_proj") else ALPHA / RANK,
    ),
}


@pytest.mark.parametrize(("settings", "ranks", "scaling"), PATTERNS.values(), ids=list(PATTERNS))
def test_scaling_settings_mean_what_peft_makes_of_them(
    tmp_path: Path, llama_base: Path, settings: dict[str, Any], ranks: dict[str, int], scaling: Scaling
) -> None:
    sides = random_sides(load_reference(llama_base), ATTENTION, ranks)
    adapter = write_adapter(tmp_path / "adapter", sides, **settings)
    theirs = reference_logits(merge_by_hand(load_reference(llama_base), sides, scaling), TOKENS)
    plain = reference_logits(merge_by_hand(load_reference(llama_base), sides, lambda _: ALPHA / RANK), TOKENS)
    assert largest_error(plain, theirs) > BREAKAGE
    assert largest_error(merged_logits(llama_base, adapter), theirs) < TOLERANCE


def test_adapter_in_bf16_is_merged_in_float32(tmp_path: Path, llama_base: Path) -> None:
    model = load_reference(llama_base)
    rounded = {
        name: (down.bfloat16().float(), up.bfloat16().float())
        for name, (down, up) in random_sides(model, ATTENTION).items()
    }
    adapter = write_adapter(tmp_path / "adapter", rounded, dtype=torch.bfloat16)
    theirs = reference_logits(merge_by_hand(model, rounded, lambda _: ALPHA / RANK), TOKENS)
    assert largest_error(merged_logits(llama_base, adapter), theirs) < TOLERANCE


def test_module_saved_whole_replaces_the_weight_of_the_base(tmp_path: Path, llama_base: Path) -> None:
    model = load_reference(llama_base)
    sides, head = random_sides(model, ("q_proj",)), torch.randn(model.lm_head.weight.shape)
    adapter = write_adapter(tmp_path / "adapter", sides, saved={"lm_head.weight": head}, modules_to_save=["lm_head"])
    merge_by_hand(model, sides, lambda _: ALPHA / RANK)
    without_head = reference_logits(model, TOKENS)
    with torch.no_grad():
        model.lm_head.weight.copy_(head)
    theirs = reference_logits(model, TOKENS)
    assert largest_error(without_head, theirs) > BREAKAGE
    assert largest_error(merged_logits(llama_base, adapter), theirs) < TOLERANCE


def test_module_saved_whole_in_another_shape_is_refused(tmp_path: Path, llama_base: Path) -> None:
    """What PEFT saves when tokens were added to the vocabulary before training."""
    model = load_reference(llama_base)
    rows, columns = model.lm_head.weight.shape
    adapter = write_adapter(
        tmp_path / "adapter",
        random_sides(model, ("q_proj",)),
        saved={"lm_head.weight": torch.randn(rows + 3, columns)},
        modules_to_save=["lm_head"],
    )
    with pytest.raises(CheckpointError, match="shape"):
        merged_logits(llama_base, adapter)
