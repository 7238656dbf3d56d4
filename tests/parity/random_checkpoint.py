"""Tiny random checkpoints saved by transformers, and the logits of transformers and of TorchOps on the same tokens."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from exporter.checkpoint.checkpoint import Checkpoint
from exporter.decoder.cache import CacheSettings, cache_layout
from exporter.decoder.forward import decode_chunk
from exporter.decoder.spec import DecoderSpec, for_context
from exporter.decoder.torch_ops import FLOAT_KV, TorchOps
from exporter.decoder.weight_names import decoder_weights
from exporter.decoder.weights import WeightStore

TOLERANCE = 1e-4
"""Largest difference of fp32 logits that is still rounding."""

BREAKAGE = 1e-2
"""Smallest difference of logits that a wrong decoder must cause, so that no fault hides under the tolerance."""

VOCABULARY, CONTEXT, WINDOW = 97, 128, 16
CHUNKS = (1, 7, 16, 3, 29, 5)
"""Uneven prefill chunks: one token, shorter and longer than the window."""
PREFILL, STEPS = sum(CHUNKS), 40


def tiny_shape(**changes: Any) -> dict[str, Any]:
    """Config fields that every family shares: four layers, four query heads on two key/value heads."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    } | changes


def random_model(config: PreTrainedConfig, seed: int = 0, embedding: float = 1.0) -> PreTrainedModel:
    """A model whose every parameter matters: matrices keep the scale of their input, gains and biases are random. `embedding` is the
    deviation of the table, which decides how large the logits of a tied model are, and with them its rounding."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    transposed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                inputs = parameter.shape[0 if name in transposed else 1]
                parameter.normal_(0, embedding if "embed" in name else inputs**-0.5, generator=generator)
            elif ".experts." in name and parameter.dim() == 3:
                inputs = parameter.shape[1 if config.model_type == "gpt_oss" else 2]
                parameter.normal_(0, inputs**-0.5, generator=generator)
            elif name.endswith(("bias", "sinks")):
                parameter.normal_(0, 0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
        for name, vector in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                vector.uniform_(0, 0.5, generator=generator)
    return model


def save_random_checkpoint(
    folder: Path, config: PreTrainedConfig, seed: int = 0, embedding: float = 1.0, **saving: Any
) -> Path:
    """Saves a random model of this config; `saving` goes to save_pretrained."""
    random_model(config, seed, embedding).save_pretrained(folder, **saving)
    return folder


def edit_config(folder: Path, removed: Sequence[str] = (), **changes: Any) -> None:
    """Removes and sets fields of a saved config.json."""
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in values.items() if name not in removed}
    path.write_text(json.dumps(kept | changes), encoding="utf-8")


def load_reference(folder: Path, implementation: str = "eager") -> PreTrainedModel:
    """What transformers makes of a folder, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=implementation).eval()


def random_tokens(count: int, vocabulary: int = VOCABULARY, seed: int = 1) -> torch.Tensor:
    """Token ids int64 [count]."""
    return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def reference_logits(model: PreTrainedModel, token_ids: torch.Tensor) -> torch.Tensor:
    """Logits of transformers in one pass and without a cache: [S] -> [S, V]."""
    return model(input_ids=token_ids[None], use_cache=False).logits[0]


@torch.no_grad()
def cached_reference_logits(model: PreTrainedModel, token_ids: torch.Tensor, prefill: int) -> torch.Tensor:
    """Logits of transformers with its cache, which decoders without attention have under another name: `prefill` tokens at once, the
    rest one by one. Not every decoder derives a token's position from its cache."""
    output = model(input_ids=token_ids[None, :prefill], use_cache=True)
    logits, name = [output.logits[0]], "cache_params" if "cache_params" in output else "past_key_values"
    asks = "position_ids" in inspect.signature(model.forward).parameters
    for position, token_id in enumerate(token_ids[prefill:], prefill):
        given = {"position_ids": torch.tensor([[position]])} if asks else {}
        output = model(input_ids=token_id.view(1, 1), use_cache=True, **given, **{name: output[name]})
        logits.append(output.logits[0])
    return torch.cat(logits)


@torch.no_grad()
def decoder_logits(
    spec: DecoderSpec, weights: WeightStore, token_ids: torch.Tensor, chunks: Sequence[int], context: int = CONTEXT
) -> torch.Tensor:
    """Logits of TorchOps with a full-precision cache: chunks of these lengths, then any further tokens one by one."""
    spec = for_context(spec, context)
    layout = cache_layout(spec, CacheSettings(context, max(chunks)))
    ops = TorchOps(spec, weights, layout, FLOAT_KV)
    singles = [1] * (len(token_ids) - sum(chunks))
    return torch.cat([decode_chunk(ops, spec, part) for part in token_ids.split([*chunks, *singles])])


class WeightsInMemory:
    """A weight store for runs with faults: every weight of a checkpoint, read once."""

    def __init__(self, values: dict[str, torch.Tensor]) -> None:
        self._values = values

    @staticmethod
    def read(checkpoint: Checkpoint) -> WeightsInMemory:
        return WeightsInMemory({spec.name: checkpoint.weight(spec.name) for spec in decoder_weights(checkpoint.spec)})

    def replace(self, name: str, values: torch.Tensor) -> WeightsInMemory:
        """The same weights but one."""
        return WeightsInMemory(self._values | {name: values})

    def dense(self, name: str) -> torch.Tensor:
        return self._values[name]

    def rows(self, name: str, index: torch.Tensor | slice) -> torch.Tensor:
        return self._values[name][index]

    def product(self, value: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.linear(value, self._values[name])


def largest_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference. Equal shapes are asserted, so that broadcasting hides nothing."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())
