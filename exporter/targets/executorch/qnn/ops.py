"""QnnOps: interprets the decoder as a graph of HTP operators.

Shapes: hidden states are [1, 1, S, D], channels last, so that every linear layer is a 1x1 convolution without a transpose. Keys
are cached transposed [1, K, Hd, C], values as [1, K, C, Hd]. Query heads that share a key/value head are folded into rows, so
keys and values are never repeated. Scores against the cache and against the chunk's own keys are concatenated, not the caches:
the cache is read once and never copied.

The caches, masks and rotary angles are inputs that `host.py` prepares; the chunk's new keys and values are outputs.
"""

from __future__ import annotations

import math

import torch

from exporter.decoder.cache import LayerCache
from exporter.decoder.spec import Activation, AttentionSpec, DecoderSpec, NormSpec, RotarySpec, rotary_settings
from exporter.decoder.weights import DecoderWeights
from exporter.errors import PlanRefused
from exporter.quantize.formats import KvFormat
from exporter.quantize.kv_codec import ChannelConstants, LayerKvConstants
from exporter.targets.executorch.qnn.blocks import kernel_columns
from exporter.targets.executorch.qnn.boundary import (
    cache_encoding,
    code_range,
    mask_name,
    nibble_table,
    rotary_encoding,
)
from exporter.targets.executorch.qnn.graph import Constant, Encoding, HtpGraph, Kernel, Role, Storage, Value
from exporter.targets.limits import WithoutExperts, WithoutLatents, WithoutRecurrence


class QnnOps(WithoutRecurrence, WithoutExperts, WithoutLatents):
    """Builds one method's graph for chunks of `chunk` tokens."""

    def __init__(
        self,
        name: str,
        spec: DecoderSpec,
        weights: DecoderWeights,
        layout: tuple[LayerCache, ...],
        chunk: int,
        kv_format: KvFormat,
        kv_constants: tuple[LayerKvConstants, ...],
        hidden_encoding: Encoding,
    ) -> None:
        self.spec, self.weights, self.layout, self.chunk = spec, weights, layout, chunk
        self.kv_format, self.kv_constants = kv_format, kv_constants
        self.graph = HtpGraph(name)
        self._hidden_encoding = hidden_encoding
        self._names: dict[str, int] = {}
        self._declare_shared_inputs()

    def embedding(self, token_ids: Value | None, table: str) -> Value:
        """The table lives on the host, which looks tokens up; the graph receives hidden states."""
        return self._hidden

    def positions(self, table: str) -> Value:
        raise refused("learned positions")

    def linear(self, value: Value, matrix: str, bias: bool) -> Value:
        quantized = self.weights.quantized(matrix)
        value = self._pad_channels(
            value, quantized.in_features, kernel_columns(quantized.in_features, quantized.format.group_size)
        )
        result = self._inner(matrix, (*value.shape[:-1], quantized.out_features))
        self.graph.add("Conv2d", result, value, Kernel(f"{matrix}_weight", quantized))
        if not bias:
            return result
        offset = Constant(f"{matrix}_bias", self.weights.dense(f"{matrix}.bias"))
        return self.graph.add("ElementWiseAdd", self._inner(f"{matrix}_biased", result.shape), result, offset)

    def rms_norm(self, value: Value, gain: str, norm: NormSpec) -> Value:
        result = self._inner(gain, value.shape)
        return self.graph.add(
            "RmsNorm", result, value, Constant(f"{gain}_gain", self.weights.dense(gain)), epsilon=norm.eps
        )

    def layer_norm(self, value: Value, gain: str, norm: NormSpec) -> Value:
        """The HTP refuses LayerNorm with a 16-bit gain; with the mean taken off before, its RmsNorm is the same."""
        mean = self._inner(f"{gain}_mean", (*value.shape[:-1], 1))
        self.graph.add("ReduceMean", mean, value)
        centered = self._binary("ElementWiseSubtract", f"{gain}_centered", value.shape, value, mean)
        normed = self.rms_norm(centered, gain, norm)
        if not norm.bias:
            return normed
        offset = Constant(f"{gain}_bias", self.weights.dense(f"{gain}.bias"))
        return self._binary("ElementWiseAdd", f"{gain}_biased", value.shape, normed, offset)

    def split_heads(self, value: Value, heads: int) -> Value:
        shape = (1, self.chunk, heads, value.shape[-1] // heads)
        return self.graph.add("Reshape", self._inner(f"{value.name}_heads", shape), value)

    def rotary(self, value: Value, rotary: RotarySpec) -> Value:
        half, width = rotary.dimensions // 2, value.shape[-1]
        first, second = self._slice(value, 3, 0, half), self._slice(value, 3, half, 2 * half)
        cosine, sine = self._cosine, self._sine
        name, shape = value.name, first.shape
        turned_first = self._binary(
            "ElementWiseSubtract",
            f"{name}_turned_first",
            shape,
            *(
                self._binary("ElementWiseMultiply", f"{name}_first_cosine", shape, first, cosine),
                self._binary("ElementWiseMultiply", f"{name}_second_sine", shape, second, sine),
            ),
        )
        turned_second = self._binary(
            "ElementWiseAdd",
            f"{name}_turned_second",
            shape,
            *(
                self._binary("ElementWiseMultiply", f"{name}_second_cosine", shape, second, cosine),
                self._binary("ElementWiseMultiply", f"{name}_first_sine", shape, first, sine),
            ),
        )
        parts = [turned_first, turned_second]
        if 2 * half < width:
            parts.append(self._slice(value, 3, 2 * half, width))
        return self._concat(f"{name}_rotated", parts, 3)

    def attention(self, layer: int, attention: AttentionSpec, query: Value, key: Value, value: Value) -> Value:
        heads, head_dim, rows = attention.kv_heads, attention.head_dim, attention.group * self.chunk
        prefix, slots = f"layers.{layer}", self.layout[layer].slots
        constants = self.kv_constants[layer]
        cached_keys = self._cache_input(f"{prefix}.keys", constants.key, heads, (head_dim, slots))
        cached_values = self._cache_input(f"{prefix}.values", constants.value, heads, (slots, head_dim))
        new_keys = self._cache_output(f"{prefix}.new_keys", constants.key, key, (0, 2, 3, 1))
        new_values = self._cache_output(f"{prefix}.new_values", constants.value, value, (0, 2, 1, 3))
        folded = self._reshape(
            self._transpose(self._balanced(query, constants.key, attention), (0, 2, 1, 3)), (1, heads, rows, head_dim)
        )
        scores = self._concat(
            f"{prefix}.scores",
            [
                self._matmul(f"{prefix}.cache_scores", folded, cached_keys, slots),
                self._matmul(f"{prefix}.chunk_scores", folded, new_keys, self.chunk),
            ],
            3,
        )
        beta = attention.score_scale
        if attention.score_cap is not None:
            # cap * tanh(u) and 2 * cap * sigmoid(2 u) differ by a constant, which the softmax takes off
            scores, beta = self._sigmoid_of(scores, 2 * beta / attention.score_cap), 2 * attention.score_cap
        probabilities = self._masked_softmax(prefix, attention, beta, scores, self.layout[layer])
        mixed = self._mixed_values(prefix, probabilities, cached_values, new_values, cache_encoding(constants.value))
        by_head = self._reshape(mixed, (1, attention.query_heads, self.chunk, head_dim))
        restored = self._restored(self._transpose(by_head, (0, 2, 1, 3)), constants.value, attention)
        return self._reshape(restored, (1, 1, self.chunk, attention.query_heads * head_dim))

    def _mixed_values(self, prefix: str, probabilities: Value, cached: Value, new: Value, codes: Encoding) -> Value:
        """Weighted means of cached and of new values, added. Parts of a convex combination stay within the values' own range,
        so their encoding is known without calibration."""
        slots, head_dim = cached.shape[2], cached.shape[3]
        shape = (*probabilities.shape[:-1], head_dim)
        encoding = Encoding.of_range(*code_range(codes, self.kv_format.bits))
        parts = []
        for name, start, stop, values in (("cache", 0, slots, cached), ("chunk", slots, slots + self.chunk, new)):
            part = self._inner(f"{prefix}.{name}_mixed", shape, encoding)
            parts.append(self.graph.add("MatMul", part, self._slice(probabilities, 3, start, stop), values))
        return self.graph.add("ElementWiseAdd", self._inner(f"{prefix}.mixed", shape, encoding), *parts)

    def activation(self, value: Value, kind: Activation) -> Value:
        if kind is Activation.SILU:
            gate = self._inner(f"{value.name}_sigmoid", value.shape, Encoding(Storage.UINT16, 1 / 65535, 0))
            self.graph.add("Sigmoid", gate, value)
            return self._binary("ElementWiseMultiply", f"{value.name}_silu", value.shape, value, gate)
        if kind is Activation.GELU_TANH:
            return self._gelu_tanh(value)
        operator = "Relu" if kind is Activation.RELU else "Gelu"
        return self.graph.add(operator, self._inner(f"{value.name}_{kind.value}", value.shape), value)

    def multiply(self, left: Value, right: Value) -> Value:
        return self._binary("ElementWiseMultiply", f"{left.name}_times", left.shape, left, right)

    def add(self, left: Value, right: Value) -> Value:
        return self._binary("ElementWiseAdd", f"{right.name}_residual", left.shape, left, right)

    def logits(self, value: Value, table: str, bias: str | None = None) -> Value:
        quantized = self.weights.quantized(table)
        value = self._pad_channels(
            value, quantized.in_features, kernel_columns(quantized.in_features, quantized.format.group_size)
        )
        shape, capped = (1, 1, self.chunk, quantized.out_features), self.spec.logits_cap is not None
        last = self._inner("uncapped_logits", shape) if capped else Value("logits", shape, Role.OUTPUT)
        product = self._inner("head_product", shape) if bias else last
        self.graph.add("Conv2d", product, value, Kernel(f"{table}_weight", quantized))
        if bias:
            offset = Constant(f"{table}_bias", self.weights.dense(bias))
            self.graph.add("ElementWiseAdd", last, product, offset)
        return last

    def soft_cap(self, value: Value, cap: float) -> Value:
        bounded = self._sigmoid_of(value, 2 / cap)
        stretched = self._binary(
            "ElementWiseMultiply", "stretched_logits", value.shape, bounded, self._number("logits_span", 2 * cap)
        )
        result = Value("logits", value.shape, Role.OUTPUT)
        return self.graph.add("ElementWiseAdd", result, stretched, self._number("logits_floor", -cap))

    def _gelu_tanh(self, value: Value) -> Value:
        """x * sigmoid(2 u) with u = sqrt(2 / pi) * (x + 0.044715 x^3): the approximation without a tanh of its own."""
        name, shape, inner = value.name, value.shape, 2 * math.sqrt(2 / math.pi)
        square = self._binary("ElementWiseMultiply", f"{name}_square", shape, value, value)
        cubic = self._number(f"{name}_cubic", 0.044715 * inner)
        bent = self._binary("ElementWiseMultiply", f"{name}_bent", shape, square, cubic)
        slope = self._binary("ElementWiseAdd", f"{name}_slope", shape, bent, self._number(f"{name}_linear", inner))
        argument = self._binary("ElementWiseMultiply", f"{name}_argument", shape, slope, value)
        gate = self._inner(f"{name}_sigmoid", shape, Encoding(Storage.UINT16, 1 / 65535, 0))
        self.graph.add("Sigmoid", gate, argument)
        return self._binary("ElementWiseMultiply", f"{name}_gelu_tanh", shape, value, gate)

    def _sigmoid_of(self, value: Value, factor: float) -> Value:
        """sigmoid(factor * value). The HTP refuses a 16-bit Tanh, and tanh(u) = 2 sigmoid(2 u) - 1."""
        scaled = self._number(f"{value.name}_factor", factor)
        argument = self._binary("ElementWiseMultiply", f"{value.name}_scaled", value.shape, value, scaled)
        result = self._inner(f"{value.name}_bounded", value.shape, Encoding(Storage.UINT16, 1 / 65535, 0))
        return self.graph.add("Sigmoid", result, argument)

    def _number(self, name: str, number: float) -> Constant:
        return Constant(name, torch.full((1, 1, 1, 1), number))

    def _declare_shared_inputs(self) -> None:
        self._hidden = self.graph.add_input(
            Value(
                "hidden", (1, 1, self.chunk, self.spec.hidden_size), Role.INPUT, Storage.UINT16, self._hidden_encoding
            )
        )
        for rotary in rotary_settings(self.spec):  # one, or none: the plan refuses more
            shape, encoding = (1, self.chunk, 1, rotary.dimensions // 2), rotary_encoding(rotary)
            self._cosine = self.graph.add_input(Value("cosine", shape, Role.INPUT, Storage.UINT16, encoding))
            self._sine = self.graph.add_input(Value("sine", shape, Role.INPUT, Storage.UINT16, encoding))
        self._masks = {}
        for kind in dict.fromkeys(self.layout):
            shape = (1, 1, self.chunk, kind.slots + self.chunk)
            self._masks[kind] = self.graph.add_input(Value(mask_name(kind), shape, Role.INPUT))

    def _cache_input(self, name: str, constants: ChannelConstants, heads: int, shape: tuple[int, int]) -> Value:
        encoding = cache_encoding(constants)
        if self.kv_format.bits == 8:
            return self.graph.add_input(Value(name, (1, heads, *shape), Role.INPUT, Storage.UINT8, encoding))
        packed_shape = (1, heads, shape[0], shape[1] // 2)
        packed = self.graph.add_input(
            Value(name, packed_shape, Role.INPUT, Storage.UINT8, Encoding(Storage.UINT8, 1.0, 0))
        )
        indices = self.graph.add("Cast", Value(f"{name}_indices", packed_shape, storage=Storage.INT32), packed)
        pairs = Value(f"{name}_pairs", (*packed_shape, 2), storage=Storage.UINT8, fixed=encoding)
        self.graph.add("Gather", pairs, nibble_table(encoding), indices, axis=0)
        return self.graph.add(
            "Reshape", Value(f"{name}_unpacked", (1, heads, *shape), storage=Storage.UINT8, fixed=encoding), pairs
        )

    def _cache_output(self, name: str, constants: ChannelConstants, value: Value, order: tuple[int, ...]) -> Value:
        """Brings new rows into the codec's domain and rounds them to cache codes, in the cache's layout."""
        prepared = self._prepared(value, constants)
        moved = self._transpose(prepared, order)
        encoding = cache_encoding(constants)
        if self.kv_format.bits == 8:
            return self.graph.add("Convert", Value(name, moved.shape, Role.OUTPUT, Storage.UINT8, encoding), moved)
        clamped = self._inner(f"{name}_clamped", moved.shape)
        low, high = code_range(encoding, self.kv_format.bits)
        self.graph.add("ReluMinMax", clamped, moved, min_value=low, max_value=high)
        return self.graph.add("Convert", Value(name, moved.shape, Role.OUTPUT, Storage.UINT8, encoding), clamped)

    def _prepared(self, value: Value, constants: ChannelConstants) -> Value:
        """(value - center) / balance on [1, S, K, Hd], left out where the constants are trivial."""
        if bool((constants.center != 0).any()):
            center = Constant(f"{value.name}_center", -constants.center[None, None])
            value = self._binary("ElementWiseAdd", f"{value.name}_centered", value.shape, value, center)
        if bool((constants.balance != 1).any()):
            factor = Constant(f"{value.name}_balance", 1 / constants.balance[None, None])
            value = self._binary("ElementWiseMultiply", f"{value.name}_balanced", value.shape, value, factor)
        return value

    def _balanced(self, query: Value, constants: ChannelConstants, attention: AttentionSpec) -> Value:
        if not bool((constants.balance != 1).any()):
            return query
        factor = Constant(f"{query.name}_balance", constants.balance.repeat_interleave(attention.group, 0)[None, None])
        return self._binary("ElementWiseMultiply", f"{query.name}_balanced", query.shape, query, factor)

    def _restored(self, mixed: Value, constants: ChannelConstants, attention: AttentionSpec) -> Value:
        """mixed * balance + center on [1, S, H, Hd]."""
        if bool((constants.balance != 1).any()):
            factor = Constant(
                f"{mixed.name}_unbalance", constants.balance.repeat_interleave(attention.group, 0)[None, None]
            )
            mixed = self._binary("ElementWiseMultiply", f"{mixed.name}_unbalanced", mixed.shape, mixed, factor)
        if bool((constants.center != 0).any()):
            center = Constant(
                f"{mixed.name}_uncenter", constants.center.repeat_interleave(attention.group, 0)[None, None]
            )
            mixed = self._binary("ElementWiseAdd", f"{mixed.name}_uncentered", mixed.shape, mixed, center)
        return mixed

    def _masked_softmax(
        self, prefix: str, attention: AttentionSpec, beta: float, scores: Value, kind: LayerCache
    ) -> Value:
        """The mask drives hidden scores to the floor of the encoding; `beta` applies the score scale, or their cap, for free."""
        rows = (1, attention.query_heads, self.chunk, scores.shape[-1])
        masked = self._binary(
            "ElementWiseAdd", f"{prefix}.masked_scores", rows, self._reshape(scores, rows), self._masks[kind]
        )
        probabilities = self._inner(f"{prefix}.probabilities", rows, Encoding(Storage.UINT16, 1 / 65535, 0))
        self.graph.add("Softmax", probabilities, masked, beta=beta, axis=3)
        return self._reshape(probabilities, scores.shape)

    def _pad_channels(self, value: Value, channels: int, padded: int) -> Value:
        if channels == padded:
            return value
        result = self._inner(f"{value.name}_padded", (*value.shape[:-1], padded))
        return self.graph.add("Pad", result, value, after=padded - channels)

    def _matmul(self, name: str, left: Value, right: Value, columns: int) -> Value:
        return self.graph.add("MatMul", self._inner(name, (*left.shape[:-1], columns)), left, right)

    def _binary(self, kind: str, name: str, shape: tuple[int, ...], left: Value, right: Value | Constant) -> Value:
        return self.graph.add(kind, self._inner(name, shape), left, right)

    def _reshape(self, value: Value, shape: tuple[int, ...]) -> Value:
        if value.shape == shape:
            return value
        return self.graph.add("Reshape", self._inner(f"{value.name}_reshaped", shape), value)

    def _transpose(self, value: Value, order: tuple[int, ...]) -> Value:
        shape = tuple(value.shape[axis] for axis in order)
        moved = [axis for axis in order if value.shape[axis] != 1]
        result = self._inner(f"{value.name}_transposed", shape)
        if moved == sorted(moved):
            return self.graph.add("Reshape", result, value)
        return self.graph.add("Transpose", result, value, order=order)

    def _slice(self, value: Value, axis: int, start: int, stop: int) -> Value:
        shape = tuple(stop - start if index == axis else size for index, size in enumerate(value.shape))
        return self.graph.add(
            "StridedSlice", self._inner(f"{value.name}_from{start}", shape), value, axis=axis, start=start, stop=stop
        )

    def _concat(self, name: str, parts: list[Value], axis: int) -> Value:
        size = sum(part.shape[axis] for part in parts)
        shape = tuple(size if index == axis else extent for index, extent in enumerate(parts[0].shape))
        return self.graph.add("Concat", self._inner(name, shape), *parts, axis=axis)

    def _inner(self, name: str, shape: tuple[int, ...], fixed: Encoding | None = None) -> Value:
        """A fresh inner value; a name used twice gets a number, the same in every method's graph."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return Value(name if count == 0 else f"{name}_{count}", shape, fixed=fixed)


def refused(what: str) -> PlanRefused:
    """The plan refuses such models before a graph is built; see `target.py`."""
    return PlanRefused(f"{what}: not lowered to the HTP", "plan the export first")
