"""A small decoder as an app developer writes it in torch, converted with coremltools alone: nothing of this project is in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.coreml_frontend import ct, optimize

LAYERS, WIDTH, HEADS, HEAD, VOCABULARY, SLOTS, CHUNK = 2, 32, 2, 16, 64, 16, 4
STATES = ("k_cache", "v_cache")


class Layer(nn.Module):
    """Attention and a feed-forward, each behind a layer normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.feed_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)


class Decoder(nn.Module):
    """`blend` writes the cache with a mask instead of a slice, for a front end that cannot do the latter."""

    def __init__(self, blend: bool = False) -> None:
        super().__init__()
        self.blend = blend
        self.embedding, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        for name in STATES:
            self.register_buffer(name, torch.zeros(LAYERS, HEADS, SLOTS, HEAD))
        angles = torch.outer(torch.arange(SLOTS), 100.0 ** (-torch.arange(0, HEAD, 2) / HEAD)).repeat(1, 2)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
        """ids int32 [1, S], mask [1, 1, S, T] or, blending, [1, 1, S, SLOTS] with `slots` one-hot [S, SLOTS]; logits [1, S, V]."""
        count, end = ids.shape[1], mask.shape[-1]
        x = self.embedding(ids)
        if slots is not None:
            cosine, sine = slots @ self.cosine, slots @ self.sine
        else:
            cosine, sine = self.cosine[end - count : end], self.sine[end - count : end]
        for index, layer in enumerate(self.layers):
            hidden = layer.attention_norm(x)
            query, key, value = (
                each(hidden).view(1, count, HEADS, HEAD).transpose(1, 2)
                for each in (layer.query, layer.key, layer.value)
            )
            query, key = (each * cosine + _half_turned(each) * sine for each in (query, key))
            for cache, new in ((self.k_cache, key), (self.v_cache, value)):
                if slots is not None:
                    free = 1 - slots.sum(0).view(1, 1, SLOTS, 1)
                    cache[index : index + 1] = cache[index : index + 1] * free + slots.T @ new
                else:
                    cache[index : index + 1, :, end - count : end, :] = new
            keys, values = self.k_cache[index : index + 1, :, :end], self.v_cache[index : index + 1, :, :end]
            mixed = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            x = x + layer.out(mixed.transpose(1, 2).reshape(1, count, WIDTH))
            x = x + layer.down(functional.gelu(layer.up(layer.feed_norm(x))))
        return functional.linear(self.norm(x), self.embedding.weight)


def _half_turned(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([-x[..., HEAD // 2 :], x[..., : HEAD // 2]], -1)


def decoder(blend: bool = False) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(blend).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that LayerNorm's ones and zeros are not the only values tested
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def states() -> list[Any]:
    shape = (LAYERS, HEADS, SLOTS, HEAD)
    return [ct.StateType(ct.TensorType(shape=shape, dtype=np.float16), name=name) for name in STATES]


def convert(program: Any, **arguments: Any) -> Any:
    return ct.convert(
        program,
        outputs=[ct.TensorType("logits", dtype=np.float16)],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
        **arguments,
    )


def traced() -> Any:
    """torch.jit.trace, with an open number of tokens and of cached tokens."""
    example = (torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, 1, 2, 5))
    chunk, end = ct.RangeDim(1, CHUNK, 1), ct.RangeDim(1, SLOTS, 1)
    inputs = [
        ct.TensorType("ids", (1, chunk), dtype=np.int32),
        ct.TensorType("mask", (1, 1, chunk, end), dtype=np.float16),
    ]
    return convert(torch.jit.trace(decoder(), example, check_trace=False), inputs=inputs, states=states())


def exported() -> Any:
    """torch.export, one token, the cache blended."""
    example = (torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 1, 1, SLOTS), torch.zeros(1, SLOTS))
    program = torch.export.export(decoder(blend=True), example).run_decompositions({})
    return convert(program)


def compressions() -> dict[str, Any]:
    """Functions from a model to a compressed one, each by a configuration that coremltools documents."""
    block = _quantizer(mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=32)
    offset = _quantizer(mode="linear", dtype="uint4", granularity="per_block", block_size=32)
    channel = _quantizer(mode="linear_symmetric", dtype="int8", granularity="per_channel")
    table = _quantizer(mode="linear_symmetric", dtype="int8", granularity="per_tensor")
    groups = _palettizer(nbits=4, granularity="per_grouped_channel", group_size=16)
    whole = _palettizer(nbits=4, granularity="per_tensor")
    vectors = _palettizer(nbits=4, granularity="per_tensor", cluster_dim=2)
    prune = optimize.OptimizationConfig(
        global_config=optimize.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0)
    )
    quantize, palettize = optimize.linear_quantize_weights, optimize.palettize_weights
    return {
        "int4 per block": lambda model: quantize(model, block),
        "uint4 per block with offset": lambda model: quantize(model, offset),
        "int8 per channel": lambda model: quantize(model, channel),
        "palettized per group": lambda model: palettize(model, groups),
        "palettized in vectors": lambda model: palettize(model, vectors),
        "palettized, tables int8": lambda model: quantize(palettize(model, whole), table, joint_compression=True),
        "sparse": lambda model: optimize.prune_weights(model, prune),
        "sparse int4": lambda model: quantize(optimize.prune_weights(model, prune), block, joint_compression=True),
        "sparse palettized": lambda model: palettize(
            optimize.prune_weights(model, prune), whole, joint_compression=True
        ),
    }


def _quantizer(**arguments: Any) -> Any:
    config = optimize.OpLinearQuantizerConfig(weight_threshold=0, **arguments)
    return optimize.OptimizationConfig(global_config=config)


def _palettizer(**arguments: Any) -> Any:
    config = optimize.OpPalettizerConfig(mode="kmeans", num_kmeans_workers=1, weight_threshold=0, **arguments)
    return optimize.OptimizationConfig(global_config=config)
