"""OnnxOps: interprets the decoder as an ONNX graph for one chunk of S tokens. Hidden states are float32 [1, S, D].

Matrices that read the same input become one product. A residual sum and the norm that follows it become one operator. Caches are
inputs and outputs of the graph; a runtime that binds both to one buffer updates them in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from exporter.decoder.cache import LayerCache
from exporter.decoder.recurrence import CausalConvolution, SelectiveScan, StateSpaceDual
from exporter.decoder.rotary import attention_factor, inverse_frequencies
from exporter.decoder.spec import Activation, AttentionSpec, DecoderSpec, ExpertsSpec, NormSpec, RotarySpec
from exporter.decoder.weight_names import same_input, sinks_name
from exporter.decoder.weights import DecoderWeights
from exporter.quantize.formats import KvFormat
from exporter.quantize.kv_codec import LayerKvConstants
from exporter.recipe import AttentionKernel, OnnxSection
from exporter.targets.onnx.attention import CachedAttention
from exporter.targets.onnx.experts import ExpertsWriter
from exporter.targets.onnx.gqa import GroupedQueryAttention
from exporter.targets.onnx.graph import MICROSOFT, GraphBuilder, Value, soft_cap
from exporter.targets.onnx.kv_encoding import CacheEncoder, CachePart, StoredLayer, cache_parts
from exporter.targets.onnx.names import HELD, LOGIT_ROWS, PAST, POSITIONS, PRESENT, TOKENS, WRITE_SLOT
from exporter.targets.onnx.recurrence import RecurrenceWriter
from exporter.targets.onnx.weights import StoredMatrix


@dataclass
class Tensor:
    """A value [1, S, n] of the graph, or a sum that waits for the norm that may absorb it. Heads stay side by side in the last
    axis; `heads` says into how many parts it is cut."""

    value: Value | None = None
    parts: tuple[Value, Value] | None = None
    heads: int = 1


@dataclass(frozen=True)
class RotaryTables:
    """Cosine and sine float [S, dimensions / 2] of a chunk's tokens, and which row is whose: int64 [1, S]."""

    rows: Value
    cosine: Value
    sine: Value


class OnnxOps:
    """Writes one graph; see `decoder.ops.Ops`."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        layout: tuple[LayerCache, ...],
        kv_format: KvFormat,
        kv_constants: tuple[LayerKvConstants, ...],
        settings: OnnxSection,
    ) -> None:
        self.spec, self.weights, self.kv_format, self.kv_constants = spec, weights, kv_format, kv_constants
        self.settings = settings
        self.graph = GraphBuilder("decoder")
        self.layout = layout
        self._rotary: dict[RotarySpec, RotaryTables] = {}
        self._middles: dict[tuple[int, int], Value] = {}
        self._products: dict[str, Value] = {}
        self._stored: dict[str, StoredMatrix] = {}
        self._vectors: dict[str, Value] = {}
        self.token_ids = Tensor(self.graph.input(TOKENS, ir.DataType.INT64, (1, "S")))
        self._positions = self.graph.input(POSITIONS, ir.DataType.INT64, (1, "S"))
        self._logit_rows = self.graph.input(LOGIT_ROWS, ir.DataType.INT64, ("L",))
        self._recurrence = RecurrenceWriter(self.graph, self._vector, self._positions)
        self._tiled: dict[tuple[LayerCache, int, tuple[float, ...] | None], Value] = {}
        self._grouped: GroupedQueryAttention | None = None
        if settings.attention is AttentionKernel.GQA:
            self._grouped = GroupedQueryAttention(self.graph, kv_format, self._positions)
            return
        self._held = {
            ring: self.graph.input(f"{HELD}.{ring.name}", ir.DataType.INT64, (f"slots.{ring.name}",))
            for ring in dict.fromkeys(layout)
            if ring.slots
        }
        self._masks = {ring: self._mask(ring) for ring in self._held}
        self._write_slots = {
            ring: self.graph.input(f"{WRITE_SLOT}.{ring.name}", ir.DataType.INT64, (1,)) for ring in self._masks
        }

    def embedding(self, token_ids: Tensor, table: str) -> Tensor:
        return Tensor(self._matrix(table, (table,)).rows(self._value(token_ids)))

    def positions(self, table: str) -> Tensor:
        rows = self.graph.constant(f"{table}.table", self.weights.dense(table).numpy())
        return Tensor(self.graph.node("Gather", rows, self._positions, axis=0, name="position_rows"))

    def linear(self, value: Tensor, matrix: str, bias: bool) -> Tensor:
        if matrix not in self._products:
            self._multiply(self._value(value), matrix)
        product = self._products.pop(matrix)  # another layer may multiply by the same matrix
        if bias:
            offset = self._vector(f"{matrix}.bias")
            product = self.graph.node("Add", product, offset, name=f"{matrix}.biased")
        return Tensor(product)

    def rms_norm(self, value: Tensor, gain: str, norm: NormSpec) -> Tensor:
        if norm.groups > 1:
            return self._grouped_norm(value, gain, norm)
        operators = "RMSNormalization", "SkipSimplifiedLayerNormalization"
        return self._normalized(value, gain, norm, *operators, self._vector(gain))

    def layer_norm(self, value: Tensor, gain: str, norm: NormSpec) -> Tensor:
        vectors = [self._vector(gain), *([self._vector(f"{gain}.bias")] if norm.bias else [])]
        return self._normalized(value, gain, norm, "LayerNormalization", "SkipLayerNormalization", *vectors)

    def split(self, value: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        parts = self.graph.nodes("Split", self._value(value), self.graph.integers(*sizes), count=len(sizes), axis=2)
        return tuple(Tensor(part) for part in parts)

    def causal_convolution(self, layer: int, convolution: CausalConvolution, value: Tensor) -> Tensor:
        name = f"layers.{layer}.recurrence.convolution"
        weight = self.weights.dense(name).squeeze(1).numpy()
        return Tensor(self._recurrence.convolve(layer, convolution, self._value(value), weight))

    def selective_scan(
        self, layer: int, scan: SelectiveScan, value: Tensor, step: Tensor, entering: Tensor, leaving: Tensor
    ) -> Tensor:
        given = [self._value(part) for part in (value, step, entering, leaving)]
        decay = -self.weights.dense(f"layers.{layer}.recurrence.decay").exp()
        return Tensor(self._recurrence.scan(layer, scan, decay.numpy(), *given))

    def state_space_dual(
        self, layer: int, dual: StateSpaceDual, value: Tensor, step: Tensor, entering: Tensor, leaving: Tensor
    ) -> Tensor:
        given = [self._value(part) for part in (value, step, entering, leaving)]
        decay = -self.weights.dense(f"layers.{layer}.recurrence.decay").exp()
        skip = self.weights.dense(f"layers.{layer}.recurrence.skip")
        return Tensor(self._recurrence.dual(layer, dual, decay.numpy(), skip.numpy(), *given))

    def split_heads(self, value: Tensor, heads: int) -> Tensor:
        return Tensor(self._value(value), heads=heads)

    def rotary(self, value: Tensor, rotary: RotarySpec) -> Tensor:
        rows, tables = self._value(value), self._rotary_tables(rotary)
        settings: dict[str, Any] = {"num_heads": value.heads, "rotary_embedding_dim": rotary.dimensions}
        inputs = (rows, tables.rows, tables.cosine, tables.sine)
        rotated = self.graph.node("RotaryEmbedding", *inputs, domain=MICROSOFT, **settings)
        return Tensor(rotated, heads=value.heads)

    def attention(self, layer: int, attention: AttentionSpec, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ring = self.layout[layer]
        if self._grouped is not None:
            given = (self._value(query), self._value(key), self._value(value))
            return Tensor(self._grouped.attend(layer, attention, ring, self.kv_constants[layer], *given))
        shared = (self.graph, layer, attention, self.kv_format, self.kv_constants[layer])
        encoder = CacheEncoder(*shared)
        if attention.latent is not None:
            new = encoder.encode_latents(self._value(key))
        else:
            new = encoder.encode(self._value(key), self._value(value))
        parts = cache_parts(layer, attention, self.kv_format, f"slots.{ring.name}")
        rows = {name: row for name, row in vars(new).items() if row is not None}
        stored = StoredLayer(
            **{name: self._write(part, row, ring) for part, (name, row) in zip(parts, rows.items(), strict=True)}
        )
        writer = CachedAttention(*shared, self.settings.attention_terms)
        mask, middle = self._tiled_mask(ring, attention), self._middle_codes(attention)
        beside = self._learned_sinks(layer, attention) if attention.learned_sinks else None
        return Tensor(writer.attend(self._value(query), stored, mask, middle, beside))

    def join(self, left: Tensor, right: Tensor) -> Tensor:
        return Tensor(self.graph.node("Concat", self._value(left), self._value(right), axis=2))

    def merge_heads(self, value: Tensor) -> Tensor:
        return Tensor(self._value(value))

    def head_products(self, value: Tensor, prefix: str, name: str, passed: int, keep: bool) -> Tensor:
        """A product for each head: the operator has no batches of matrices."""
        graph, names = self.graph, [f"{prefix}.{head}.{name}" for head in range(value.heads)]
        multiplied = self.weights.quantized(names[0]).in_features
        sizes = graph.integers(*[passed, multiplied] * value.heads)
        pieces = graph.nodes("Split", self._value(value), sizes, count=2 * value.heads, axis=2)
        joined = []
        for matrix, first, second in zip(names, pieces[::2], pieces[1::2], strict=True):
            product = self._matrix(matrix, (matrix,)).multiply(second, f"{matrix}.product")
            joined += [first, product] if keep else [product]
        return Tensor(graph.node("Concat", *joined, axis=2), heads=value.heads)

    def activation(self, value: Tensor, kind: Activation) -> Tensor:
        graph, inner = self.graph, self._value(value)
        if kind is Activation.SILU:
            return Tensor(graph.node("QuickGelu", inner, domain=MICROSOFT, alpha=1.0))
        if kind is Activation.QUICK_GELU:
            return Tensor(graph.node("QuickGelu", inner, domain=MICROSOFT, alpha=1.702))
        if kind is Activation.RELU:
            return Tensor(graph.node("Relu", inner))
        return Tensor(graph.node("Gelu", inner, approximate="tanh" if kind is Activation.GELU_TANH else "none"))

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        return Tensor(self.graph.node("Mul", self._value(left), self._value(right)))

    def add(self, left: Tensor, right: Tensor) -> Tensor:
        return Tensor(parts=(self._value(left), self._value(right)))

    def experts(self, value: Tensor, prefix: str, experts: ExpertsSpec) -> Tensor:
        writer = ExpertsWriter(self.graph, self.weights, prefix, experts, self.settings.activation_bits)
        return Tensor(writer.mix(self._value(value)))

    def token_gate(self, value: Tensor, source: Tensor, vector: str) -> Tensor:
        graph, column = self.graph, self.weights.dense(vector).T.contiguous().numpy()
        product = graph.node("MatMul", self._value(source), graph.constant(vector, column))
        return Tensor(graph.node("Mul", self._value(value), graph.node("Sigmoid", product)))

    def logits(self, value: Tensor, table: str, bias: str | None = None) -> Tensor:
        """Only the rows that the caller asks for meet the head."""
        rows = self.graph.node("Gather", self._value(value), self._logit_rows, axis=1, name="logit_rows_of_chunk")
        product = self._matrix(table, (table,)).multiply(rows, "head.product")
        return Tensor(product if bias is None else self.graph.node("Add", product, self._vector(bias)))

    def soft_cap(self, value: Tensor, cap: float) -> Tensor:
        return Tensor(soft_cap(self.graph, self._value(value), cap))

    def finish(self, logits: Tensor) -> None:
        """Declares the outputs."""
        self.graph.output(self._value(logits), "logits", ir.DataType.FLOAT, (1, "L", self.spec.vocab_size))

    def _normalized(
        self, value: Tensor, gain: str, norm: NormSpec, operator: str, after_sum: str, *vectors: Value
    ) -> Tensor:
        """One operator for the norm, and for the sum before it where one waits."""
        graph, name = self.graph, f"{gain}.normed"
        if value.value is None and value.parts is not None:
            settings: dict[str, Any] = {"domain": MICROSOFT, "name": name, "count": 4, "epsilon": norm.eps}
            normed, _, _, value.value = graph.nodes(after_sum, *value.parts, *vectors, **settings)
            return Tensor(normed)
        rows = self._value(value)
        settings = {"name": name, "axis": -1, "epsilon": norm.eps, "stash_type": 1}
        if value.heads == 1:
            return Tensor(graph.node(operator, rows, *vectors, **settings))
        split = graph.node("Reshape", rows, graph.integers(0, 0, value.heads, -1))
        normed = graph.node(operator, split, *vectors, **settings)
        return Tensor(graph.node("Reshape", normed, graph.integers(0, 0, -1)), heads=value.heads)

    def _grouped_norm(self, value: Tensor, gain: str, norm: NormSpec) -> Tensor:
        """The operator's gain is shared by the groups, so it is one, and each group's own follows."""
        graph, count = self.graph, self.weights.dense(gain).shape[0] // norm.groups
        ones = graph.constant(f"ones_{count}", np.ones(count, np.float32))
        split = graph.node("Reshape", self._value(value), graph.integers(0, 0, norm.groups, -1))
        normed = graph.node("RMSNormalization", split, ones, axis=-1, epsilon=norm.eps, stash_type=1)
        flat = graph.node("Reshape", normed, graph.integers(0, 0, -1))
        return Tensor(graph.node("Mul", flat, self._vector(gain)))

    def _value(self, tensor: Tensor) -> Value:
        if tensor.value is None:
            assert tensor.parts is not None
            tensor.value = self.graph.node("Add", *tensor.parts, name="residual")
        return tensor.value

    def _vector(self, name: str) -> Value:
        """float32, but stored in fp16 where that loses nothing, as with most checkpoints of 16 bits."""
        if name not in self._vectors:
            values = self.weights.dense(name)
            if _fits_half(values):
                stored = self.graph.constant(name, values.half().numpy())
                self._vectors[name] = self.graph.node("Cast", stored, to=ir.DataType.FLOAT, name=f"{name}.float")
            else:
                self._vectors[name] = self.graph.constant(name, values.numpy())
        return self._vectors[name]

    def _matrix(self, name: str, parts: tuple[str, ...]) -> StoredMatrix:
        if name not in self._stored:
            matrices = [self.weights.quantized(part) for part in parts]
            self._stored[name] = StoredMatrix(self.graph, name, matrices, self.settings.activation_bits)
        return self._stored[name]

    def _multiply(self, value: Value, leader: str) -> None:
        """One product for a matrix and for those that will ask for the same input next."""
        names = [leader, *same_input(leader)]
        stored = self._matrix(leader, tuple(names))
        product = stored.multiply(value, f"{leader}.product")
        if len(names) == 1:
            self._products[leader] = product
            return
        sizes = [self.weights.quantized(name).out_features for name in names]
        pieces = self.graph.nodes("Split", product, self.graph.integers(*sizes), count=len(names), axis=2)
        self._products.update(zip(names, pieces, strict=True))

    def _rotary_tables(self, rotary: RotarySpec) -> RotaryTables:
        """Computed from the chunk's positions, once for all layers that rotate alike: stored tables of a long context would be larger
        than many a layer."""
        if rotary not in self._rotary:
            graph = self.graph
            steps = graph.constant(f"rotary.{len(self._rotary)}.frequencies", inverse_frequencies(rotary).numpy())
            position = graph.node(
                "Cast", graph.node("Reshape", self._positions, graph.integers(-1, 1)), to=ir.DataType.FLOAT
            )
            angles, factor = graph.node("Mul", position, steps), attention_factor(rotary)
            cosine, sine = graph.node("Cos", angles), graph.node("Sin", angles)
            if factor != 1.0:
                cosine, sine = (graph.node("Mul", table, graph.scalar(factor)) for table in (cosine, sine))
            first = graph.node("Gather", self._positions, graph.integers(0), axis=1)
            self._rotary[rotary] = RotaryTables(graph.node("Sub", self._positions, first), cosine, sine)
        return self._rotary[rotary]

    def _learned_sinks(self, layer: int, attention: AttentionSpec) -> Value:
        """float [1, K, G * S, 1]: every head's logit for each of the chunk's tokens."""
        graph, heads = self.graph, (attention.kv_heads, attention.group)
        stored = self.weights.dense(sinks_name(layer)).view(1, *heads, 1).numpy()
        shape = graph.node("Concat", graph.integers(1, *heads), graph.node("Shape", self._positions, start=1), axis=0)
        repeated = graph.node("Expand", graph.constant(sinks_name(layer), stored), shape)
        return graph.node("Reshape", repeated, graph.integers(1, attention.kv_heads, -1, 1))

    def _middle_codes(self, attention: AttentionSpec) -> Value:
        """uint8 [1, K, G * S, 1] of 128: the zero points that QuantizeLinear wants beside every scale."""
        heads = attention.kv_heads, attention.group
        if heads not in self._middles:
            graph, (kv_heads, group) = self.graph, heads
            rows = graph.node("Mul", graph.node("Shape", self._positions, start=1), graph.integers(group))
            shape = graph.node("Concat", graph.integers(1, kv_heads), rows, graph.integers(1), axis=0)
            self._middles[heads] = graph.node("Expand", graph.scalar(128, np.uint8), shape)
        return self._middles[heads]

    def _write(self, part: CachePart, new: Value, ring: LayerCache) -> Value:
        """Puts new rows into the cache, wrapping at its end, and declares both ends."""
        past = self.graph.input(f"{PAST}.{part.name}", part.data_type, part.shape)
        settings: dict[str, Any] = {"axis": part.slot_axis, "mode": "circular"}
        written = self.graph.node("TensorScatter", past, new, self._write_slots[ring], **settings)
        self.graph.output(written, f"{PRESENT}.{part.name}", part.data_type, part.shape)
        return written

    def _tiled_mask(self, ring: LayerCache, attention: AttentionSpec) -> Value:
        """The mask once for each of the query heads that share a key head, [G * S, C], or [K, G * S, C] with what distance takes from
        the scores of each head."""
        key = ring, attention.group, attention.distance_slopes
        if key not in self._tiled:
            copies = [self._masks[ring]] * attention.group
            if attention.distance_slopes is not None:
                self._tiled[key] = self._sloped_mask(ring, attention, attention.distance_slopes)
            else:
                self._tiled[key] = copies[0] if len(copies) == 1 else self.graph.node("Concat", *copies, axis=0)
        return self._tiled[key]

    def _sloped_mask(self, ring: LayerCache, attention: AttentionSpec, slopes: tuple[float, ...]) -> Value:
        """float [K, G * S, C]. What an empty slot is said to hold lies after every token: no distance comes of it."""
        graph = self.graph
        token = graph.node("Reshape", self._positions, graph.integers(-1, 1))
        behind = graph.node("Sub", self._held[ring], token)
        distance = graph.node("Cast", graph.node("Min", behind, graph.scalar(0, np.int64)), to=ir.DataType.FLOAT)
        stored = graph.constant(f"slopes.{len(self._tiled)}", np.array(slopes, np.float32).reshape(-1, 1, 1))
        sloped = graph.node("Add", graph.node("Mul", stored, distance), self._masks[ring])
        return graph.node("Reshape", sloped, graph.integers(attention.kv_heads, -1, 0))

    def _mask(self, ring: LayerCache) -> Value:
        """float [S, C]: 0 where a token may read a slot, else minus infinity. `held` says which position each slot holds; one that
        holds nothing yet holds a position after every token."""
        graph, held = self.graph, self._held[ring]
        token = graph.node("Reshape", self._positions, graph.integers(-1, 1))
        seen = graph.node("LessOrEqual", held, token)
        if ring.window is not None:
            near = graph.node("Greater", held, graph.node("Sub", token, graph.scalar(ring.window, np.int64)))
            if ring.sinks:
                near = graph.node("Or", near, graph.node("Less", held, graph.scalar(ring.sinks, np.int64)))
            seen = graph.node("And", seen, near)
        return graph.node("Where", seen, graph.scalar(0), graph.scalar(-np.inf), name=f"mask.{ring.name}")


def _fits_half(values: torch.Tensor) -> bool:
    return torch.equal(values.half().float(), values)
