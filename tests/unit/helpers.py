"""Tiny random decoders, a plain reference decoder and random tensors for unit tests."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import settings

from exporter.decoder.cache import CacheSettings, LayerCache, cache_layout
from exporter.decoder.forward import decode_chunk
from exporter.decoder.rotary import attention_factor, inverse_frequencies
from exporter.decoder.sequence_ops import Hooks, SequenceOps
from exporter.decoder.spec import (
    Activation,
    AttentionSpec,
    DecoderSpec,
    FeedForwardSpec,
    LayerSpec,
    NormSpec,
    RotaryScaling,
    RotarySpec,
)
from exporter.decoder.torch_ops import TorchOps
from exporter.decoder.weight_names import EMBEDDING, WeightKind, decoder_weights, head_name
from exporter.decoder.weights import DecoderWeights
from exporter.quantize.calibration import KvCalibrator
from exporter.quantize.formats import KvFormat, ScaleFormat, WeightFormat
from exporter.quantize.int4 import quantize_nearest
from exporter.quantize.kv_codec import LayerKvConstants
from exporter.quantize.palette import quantize_to_palettes
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.qnn.encodings import extend_encodings
from exporter.targets.executorch.qnn.evaluate import GraphEvaluator, emulator
from exporter.targets.executorch.qnn.graph import Encoding, Storage, Value
from exporter.targets.executorch.qnn.host import HIDDEN, Host
from exporter.targets.executorch.qnn.lower import DECODE, PREFILL, build_graphs, calibrate_activations, host_layout

LPBQ_32 = WeightFormat(4, 32, ScaleFormat.LPBQ)


def examples(count: int) -> settings:
    """Hypothesis settings for CI: the same examples every time, no deadline on a busy machine."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal float32 numbers."""
    return torch.randn(shape, generator=generator(seed))


def awkward_matrix(seed: int, rows: int, columns: int) -> torch.Tensor:
    """Rows of very different magnitude, with outliers, runs of zeros and a whole zero row now and then."""
    source = generator(seed)
    matrix = torch.randn(rows, columns, generator=source)
    matrix *= 10.0 ** (torch.rand(rows, 1, generator=source) * 3 - 2)
    matrix[torch.rand(rows, columns, generator=source) < 0.02] *= 12.0
    start = int(torch.randint(0, columns, (1,), generator=source))
    matrix[:, start : start + 40] *= float(torch.rand(1, generator=source) > 0.5)
    matrix[torch.rand(rows, generator=source) < 0.1] = 0.0
    return matrix


def random_tokens(spec: DecoderSpec, count: int, seed: int = 5) -> list[int]:
    return torch.randint(0, spec.vocab_size, (count,), generator=generator(seed)).tolist()


@dataclass(frozen=True)
class TinyModel:
    """Shape of a tiny decoder; one layer per entry of `windows`."""

    windows: tuple[int | None, ...] = (None, 6)
    hidden_size: int = 32
    inner_size: int = 48
    query_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    rotated: int = 8
    vocab_size: int = 61
    bias: bool = False
    query_key_norm: bool = False
    tied: bool = True
    activation: Activation = Activation.SILU
    scaling: RotaryScaling | None = None

    def spec(self) -> DecoderSpec:
        norm = NormSpec(1e-5)

        def layer(window: int | None) -> LayerSpec:
            attention = AttentionSpec(
                self.query_heads,
                self.kv_heads,
                self.head_dim,
                1 / math.sqrt(self.head_dim),
                RotarySpec(self.rotated, 10000.0, self.scaling),
                window,
                norm if self.query_key_norm else None,
                self.bias,
                self.bias,
            )
            return LayerSpec(norm, attention, norm, FeedForwardSpec(self.inner_size, self.activation, self.bias))

        layers = tuple(layer(window) for window in self.windows)
        return DecoderSpec("tiny", self.vocab_size, self.hidden_size, 4096, layers, norm, self.tied)


@functools.cache
def random_weights(spec: DecoderSpec, weight_format: WeightFormat = LPBQ_32, seed: int = 0) -> DecoderWeights:
    """Quantized random weights under which activations keep their magnitude and attention is far from uniform."""
    matrices, vectors = {}, {}
    for index, weight in enumerate(decoder_weights(spec)):
        values = normal(seed * 1000 + index, *weight.shape)
        if weight.kind is WeightKind.VECTOR:
            vectors[weight.name] = 0.2 * values if weight.name.endswith(".bias") else 1 + 0.2 * values
            continue
        gain = 1.2 if weight.name.endswith(("query", "key")) else 1.0
        values *= 1.0 if weight.kind is WeightKind.TABLE else gain / math.sqrt(weight.shape[1])
        quantize = quantize_to_palettes if weight_format.palette_rows else quantize_nearest
        matrices[weight.name] = quantize(values, weight_format)
    return DecoderWeights(matrices, vectors)


def watch_attention(
    spec: DecoderSpec,
    weights: DecoderWeights,
    observe: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None],
    tokens: int = 160,
) -> None:
    """Shows `observe` the layer, queries, keys and values of random tokens decoded in full precision."""
    ops = SequenceOps(weights, tokens, Hooks(attention=observe))
    decode_chunk(ops, spec, torch.tensor(random_tokens(spec, tokens, seed=77)))


def round_fixed(value: Value, data: torch.Tensor) -> torch.Tensor:
    """Observer that rounds only values whose encoding is given by construction (caches, inputs)."""
    return data if value.fixed is None or value.storage is Storage.INT32 else value.fixed.snap(data)


def calibrated_constants(
    spec: DecoderSpec, weights: DecoderWeights, kv_format: KvFormat
) -> tuple[LayerKvConstants, ...]:
    """Constants of every layer from what attention sees on random tokens."""
    calibrator = KvCalibrator(spec)
    watch_attention(spec, weights, calibrator.observe)
    return calibrator.constants(kv_format)


@functools.cache
def quantized_decoder(
    model: TinyModel,
    cache: CacheSettings,
    kv_format: KvFormat,
    weight_format: WeightFormat = LPBQ_32,
    slot_multiple: int = 1,
) -> QuantizedDecoder:
    """A complete random decoder with calibrated KV constants."""
    spec = model.spec()
    weights = random_weights(spec, weight_format)
    layout = tuple(
        LayerCache(-(-layer.slots // slot_multiple) * slot_multiple, layer.window, layer.sinks)
        for layer in cache_layout(spec, cache)
    )
    constants = calibrated_constants(spec, weights, kv_format)
    return QuantizedDecoder(spec, weights, layout, kv_format, constants, cache.chunk, cache.context)


def decode_in_pieces(ops: TorchOps, tokens: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    """Logits of all tokens when they arrive in pieces of the given sizes, the last size repeated: [len(tokens), V]."""
    ops.reset()
    pieces, at, turn = [], 0, 0
    while at < len(tokens):
        size = sizes[min(turn, len(sizes) - 1)]
        pieces.append(decode_chunk(ops, ops.spec, torch.tensor(tokens[at : at + size])))
        at, turn = at + size, turn + 1
    return torch.cat(pieces)


def visible_positions(query: int, window: int | None, sinks: int) -> set[int]:
    """The definition: causal, and inside the window or among the sinks."""
    return {key for key in range(query + 1) if window is None or key > query - window or key < sinks}


def reference_logits(
    spec: DecoderSpec, weights: DecoderWeights, tokens: Sequence[int], window: int | None = None, sinks: int = 0
) -> torch.Tensor:
    """The decoder written out without caches, chunks or interpreters, in float64: [len(tokens), V]."""

    def weight(name: str) -> torch.Tensor:
        return weights.dense(name).double()

    def linear(value: torch.Tensor, name: str, bias: bool) -> torch.Tensor:
        result = value @ weight(name).T
        return result + weight(f"{name}.bias") if bias else result

    def norm(value: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        return value / (value.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight(name)

    def rotate(value: torch.Tensor, rotary: RotarySpec) -> torch.Tensor:
        half = rotary.dimensions // 2
        angles = torch.arange(len(tokens)).double()[:, None] * inverse_frequencies(rotary).double()[None]
        turn = torch.polar(torch.full_like(angles, attention_factor(rotary)), angles)[:, None]
        turned = torch.complex(value[..., :half], value[..., half : 2 * half]) * turn
        return torch.cat((turned.real, turned.imag, value[..., 2 * half :]), -1)

    functions = {
        Activation.SILU: torch.nn.functional.silu,
        Activation.RELU: torch.relu,
        Activation.GELU: torch.nn.functional.gelu,
        Activation.GELU_TANH: lambda value: torch.nn.functional.gelu(value, approximate="tanh"),
    }
    hidden = weight(EMBEDDING)[torch.tensor(tokens)]
    for index, layer in enumerate(spec.layers):
        attention, prefix = layer.attention, f"layers.{index}"
        normed = norm(hidden, f"{prefix}.attention_norm", layer.attention_norm.eps)
        bias = attention.query_key_value_bias
        query, key, value = (
            linear(normed, f"{prefix}.attention.{name}", bias).unflatten(-1, (-1, attention.head_dim))
            for name in ("query", "key", "value")
        )
        if attention.query_key_norm:
            query = norm(query, f"{prefix}.attention.query_norm", attention.query_key_norm.eps)
            key = norm(key, f"{prefix}.attention.key_norm", attention.query_key_norm.eps)
        if attention.rotary:
            query, key = rotate(query, attention.rotary), rotate(key, attention.rotary)
        bounds = [bound for bound in (attention.window, window) if bound is not None]
        hidden_pairs = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
        for position in range(len(tokens)):
            hidden_pairs[position, sorted(visible_positions(position, min(bounds, default=None), sinks))] = False
        mixed = torch.zeros_like(query)
        for head in range(attention.query_heads):
            kv_head = head // attention.group
            scores = query[:, head] @ key[:, kv_head].T * attention.score_scale
            mixed[:, head] = scores.masked_fill(hidden_pairs, -torch.inf).softmax(-1) @ value[:, kv_head]
        hidden = hidden + linear(mixed.flatten(1), f"{prefix}.attention.output", attention.output_bias)
        block, prefix = layer.feed_forward, f"{prefix}.feed_forward"
        normed = norm(hidden, f"{prefix}_norm", layer.feed_forward_norm.eps)
        gate = functions[block.activation](linear(normed, f"{prefix}.gate", block.bias))
        hidden = hidden + linear(gate * linear(normed, f"{prefix}.up", block.bias), f"{prefix}.down", block.bias)
    return norm(hidden, "final_norm", spec.final_norm.eps) @ weight(head_name(spec)).T


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root-mean-square difference as a share of the expected values' spread."""
    return float((found.double() - expected.double()).square().mean().sqrt() / expected.double().std())


def numpy_codes(seed: int, low: int, high: int, *shape: int) -> np.ndarray:
    """Random integers in [low, high] as uint8 or int8."""
    kind = np.int8 if low < 0 else np.uint8
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(kind)


class GraphSession:
    """One conversation with both NPU methods, evaluated in float through the host's own rings.

    Without `encodings` only values that are fixed by construction are rounded; with them every value is.
    """

    def __init__(self, decoder: QuantizedDecoder, encodings: dict[str, Encoding] | None = None) -> None:
        self.decoder, self.encodings = decoder, encodings
        self.evaluators = {name: GraphEvaluator(graph) for name, graph in build_graphs(decoder).items()}
        self.logits_encoding = encodings["logits"] if encodings else Encoding(Storage.UINT16, 1.0, 0)
        self.layout = host_layout(decoder, self.logits_encoding)
        self.host = Host(self.layout, self._row)

    def _row(self, token_id: int) -> np.ndarray:
        return self.decoder.weights.rows(EMBEDDING, torch.tensor([token_id]))[0].numpy()

    def evaluate(self, method: str, codes: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Real outputs of one call on integer inputs."""
        evaluator = self.evaluators[method]
        real = {value.name: self._real(value, codes[value.name]) for value in evaluator.graph.inputs}
        return evaluator.run(real, emulator(self.encodings) if self.encodings else round_fixed)

    def codes(self, method: str, outputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Outputs as the integers that cross the boundary of the graph."""
        values = {value.name: value for value in self.evaluators[method].graph.outputs}
        encodings = {name: value.fixed or self.logits_encoding for name, value in values.items()}
        kinds = {name: np.uint8 if value.fixed else np.uint16 for name, value in values.items()}
        return {name: encodings[name].quantize(data).numpy().astype(kinds[name]) for name, data in outputs.items()}

    def feed(self, method: str, token_ids: list[int]) -> torch.Tensor:
        """Logits after each token of one call: [len(token_ids), V]."""
        outputs = self.evaluate(method, self.host.inputs(token_ids, 1 if method == DECODE else self.decoder.chunk))
        committed = torch.from_numpy(self.host.commit(self.codes(method, outputs), len(token_ids)))
        return committed if self.encodings else outputs["logits"][0, 0, : len(token_ids)]

    def _real(self, value: Value, codes: np.ndarray) -> torch.Tensor:
        assert codes.shape == value.shape, value.name
        integers = torch.from_numpy(codes.astype(np.int32))
        encoding = self.encodings[value.name] if self.encodings else value.fixed
        return encoding.dequantize(integers) if encoding else torch.where(integers == HIDDEN, -1e6, 0.0)

    def run(self, tokens: list[int], decoded: int) -> torch.Tensor:
        """Prefills all but the last `decoded` tokens in chunks, decodes those one by one: logits [len(tokens), V]."""
        count, chunk = len(tokens) - decoded, self.decoder.chunk
        logits = [self.feed(PREFILL, tokens[at : min(at + chunk, count)]) for at in range(0, count, chunk)]
        return torch.cat([*logits, *(self.feed(DECODE, [token]) for token in tokens[count:])])


@functools.cache
def calibrated_encodings(decoder: QuantizedDecoder) -> dict[str, Encoding]:
    """Encodings of both methods from random tokens."""
    windows = [random_tokens(decoder.spec, 8 * decoder.chunk, seed) for seed in range(3)]
    encodings = calibrate_activations(decoder, windows, lambda event: None)
    for graph in build_graphs(decoder).values():
        encodings = extend_encodings(graph, encodings)
    return encodings
