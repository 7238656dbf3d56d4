"""Sharded and half-precision checkpoints read as transformers reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from all_cases import CASES
from random_checkpoint import (
    CHUNKS,
    PREFILL,
    TOLERANCE,
    decoder_logits,
    largest_error,
    load_reference,
    random_model,
    random_tokens,
    reference_logits,
    save_random_checkpoint,
    tiny_shape,
)
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from exporter.checkpoint.checkpoint import open_checkpoint
from exporter.checkpoint.tensors import INDEX_FILE, SINGLE_FILE
from exporter.decoder.weight_names import decoder_weights

CONFIGS = {
    "llama": LlamaConfig(**tiny_shape(mlp_bias=True)),
    "mistral": MistralConfig(**tiny_shape()),
    "qwen2": Qwen2Config(**tiny_shape()),
    "qwen3": Qwen3Config(**tiny_shape(head_dim=16, tie_word_embeddings=True)),
}
every_family = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))


@every_family
def test_sharded_checkpoint_equals_the_single_file(tmp_path: Path, config: PreTrainedConfig) -> None:
    single = open_checkpoint(save_random_checkpoint(tmp_path / "single", config))
    sharded = open_checkpoint(save_random_checkpoint(tmp_path / "sharded", config, max_shard_size="20KB"))
    assert single.tensors.paths() == [single.folder / SINGLE_FILE]
    assert len(sharded.tensors.paths()) >= 4
    assert not (sharded.folder / SINGLE_FILE).exists()
    assert sharded.spec == single.spec
    for weight in decoder_weights(single.spec):
        assert torch.equal(sharded.weight(weight.name), single.weight(weight.name)), weight.name


@every_family
def test_sharded_checkpoint_gives_the_logits_of_transformers(tmp_path: Path, config: PreTrainedConfig) -> None:
    checkpoint = open_checkpoint(save_random_checkpoint(tmp_path, config, max_shard_size="20KB"))
    token_ids = random_tokens(PREFILL)
    theirs = reference_logits(load_reference(tmp_path), token_ids)
    assert largest_error(decoder_logits(checkpoint.spec, checkpoint, token_ids, CHUNKS), theirs) < TOLERANCE


@every_family
def test_manifest_inputs_list_every_shard(tmp_path: Path, config: PreTrainedConfig) -> None:
    checkpoint = open_checkpoint(save_random_checkpoint(tmp_path, config, max_shard_size="20KB"))
    assert (tmp_path / INDEX_FILE).is_file()
    assert set(tmp_path.glob("*.safetensors")) <= set(checkpoint.input_files())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@every_family
def test_half_precision_checkpoint_reads_as_transformers_in_float32(
    tmp_path: Path, config: PreTrainedConfig, dtype: torch.dtype
) -> None:
    original = random_model(config)
    before = {name: values.clone() for name, values in original.state_dict().items()}
    original.to(dtype).save_pretrained(tmp_path)
    checkpoint, reference = open_checkpoint(tmp_path), load_reference(tmp_path)
    theirs = reference.state_dict()
    for weight in decoder_weights(checkpoint.spec):
        ours, name = checkpoint.weight(weight.name), checkpoint.source(weight.name).tensor
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs[name]), name
        assert not torch.equal(ours, before[name]), f"{name} was not rounded, so that the test shows nothing"
    token_ids = random_tokens(PREFILL)
    ours = decoder_logits(checkpoint.spec, checkpoint, token_ids, CHUNKS)
    assert largest_error(ours, reference_logits(reference, token_ids)) < TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama-tied"])
def test_checkpoint_of_the_bare_decoder_gives_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    """GPT-2 and BLOOM are published so: no tensor's name begins with the name of the decoder."""
    model = random_model(CASES[name].config)
    model.base_model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert not any(file.startswith(("transformer.", "model.")) for file in checkpoint.tensors.files)
    token_ids = random_tokens(PREFILL)
    theirs = reference_logits(model, token_ids)
    assert largest_error(decoder_logits(checkpoint.spec, checkpoint, token_ids, CHUNKS), theirs) < TOLERANCE
