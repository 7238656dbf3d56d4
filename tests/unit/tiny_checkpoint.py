"""Tiny checkpoint folders, adapters and tokenizers, written by hand so that one fact of them can be wrong at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from exporter.checkpoint.config import Config
from exporter.checkpoint.family import find_family
from exporter.checkpoint.tensors import INDEX_FILE, SINGLE_FILE
from exporter.decoder.spec import DecoderSpec
from exporter.decoder.weight_names import WeightKind, decoder_weights

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
VOCAB_SIZE = 264
END_OF_TEXT = "<|endoftext|>"
QUERY = "model.layers.0.self_attn.q_proj"
QUERY_WEIGHT = f"{QUERY}.weight"
FIRST_SHARD = "model-00001-of-00002.safetensors"

Tensors = dict[str, torch.Tensor]


def tiny_config(family: str = "llama", tied: bool = True, bias: bool = False, **changes: Any) -> dict[str, Any]:
    """`config.json` of a two-layer model. A change to None removes the field."""
    config: dict[str, Any] = {
        "model_type": family,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if family in ("llama", "qwen3"):
        config["attention_bias"] = bias
    if family == "llama":
        config["mlp_bias"] = bias
    config.update(changes)
    return {field: value for field, value in config.items() if value is not None}


def spec_of(config: dict[str, Any]) -> DecoderSpec:
    """The DecoderSpec that the family reads from `config`."""
    return find_family(Config(config)).decoder_spec(Config(config))


def tensor_names(config: dict[str, Any]) -> dict[str, str]:
    """Checkpoint tensor name of every canonical weight name."""
    weights = find_family(Config(config)).weights(Config(config))
    return {weight.name: weights.source(weight.name).tensor for weight in decoder_weights(spec_of(config))}


def tiny_tensors(config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    """Random weights by checkpoint tensor name: norms near one, the rest near zero."""
    random, weights = torch.Generator().manual_seed(seed), find_family(Config(config)).weights(Config(config))
    tensors: Tensors = {}
    for weight in decoder_weights(spec_of(config)):
        source = weights.source(weight.name)
        if source.tensor in tensors:
            continue  # one of several weights in a fused tensor
        values = torch.randn(source.stored_shape(weight.shape), generator=random) * 0.1
        if weight.kind is WeightKind.VECTOR and not weight.name.endswith(".bias"):
            values += 1
        tensors[source.tensor] = values.to(dtype)
    return tensors


def write_config(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_tensors(folder: Path, tensors: Tensors, shards: int = 1) -> None:
    """One file, or `shards` files with an index; tensors are dealt out in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(tensors, folder / SINGLE_FILE)
        return
    files = [f"model-{shard + 1:05d}-of-{shards:05d}.safetensors" for shard in range(shards)]
    weight_map = {name: files[position % shards] for position, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensors[name] for name, place in weight_map.items() if place == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")


def write_tokenizer(folder: Path, extra_tokens: Iterable[str] = ()) -> None:
    """Byte-level tokenizer without merges: id 0 ends a text, ids 1 to 256 are bytes, `extra_tokens` follow."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet()), *extra_tokens]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_checkpoint(
    folder: Path,
    config: dict[str, Any] | None = None,
    tensors: Tensors | None = None,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A whole folder: config, weights and tokenizer. Returns `folder`."""
    config = tiny_config() if config is None else config
    write_config(folder, config)
    write_tensors(folder, tiny_tensors(config, dtype=dtype) if tensors is None else tensors, shards)
    write_tokenizer(folder)
    return folder


def write_adapter(folder: Path, tensors: Tensors, **settings: Any) -> Path:
    """A PEFT LoRA adapter folder. `tensors` are keyed as PEFT saves them, without the `base_model.model.` prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"peft_type": "LORA", "lora_alpha": 8, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(values), encoding="utf-8")
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def lora_pair(rank: int = 2, seed: int = 1, module: str = QUERY) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, 32, generator=random),
        f"{module}.lora_B.weight": torch.randn(32, rank, generator=random),
    }
