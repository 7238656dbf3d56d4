"""Experts as one com.microsoft::QMoE per layer, which reads the INT4 codes of the experts that a token goes to, and of no others.

Gates and the other side lie row beside row, as the operator wants them: the first matrix is [E, 2 * F, D]. Channels between the two
matrices are padded to whole blocks with codes of zero. The operator chooses experts by one tensor and weights them by another, which
is how every rule of routing fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from exporter.decoder.experts import ROUTER, SELECTION_BIAS, GroupLimit, GroupScore, RouterScore, expert_prefix
from exporter.decoder.spec import Activation, ExpertsSpec
from exporter.decoder.weights import DecoderWeights
from exporter.quantize.int4 import QuantizedMatrix
from exporter.targets.onnx.graph import MICROSOFT, GraphBuilder, Value
from exporter.targets.onnx.weights import ACCURACY_LEVELS, Blocks, block_codes, block_scales

SLOPES = {Activation.SILU: 1.0, Activation.QUICK_GELU: 1.702}
"""Activations x * sigmoid(slope * x): the ones that the operator gates with."""

NEVER = -1e9
"""Rank of an expert whose group was not chosen."""


@dataclass(frozen=True)
class Choice:
    """What experts are compared by, float [S, E], and what the chosen ones are weighted by, None for a softmax over them."""

    ranks: Value
    weights: Value | None


class ExpertsWriter:
    """Writes one layer's experts into a graph."""

    def __init__(
        self, graph: GraphBuilder, weights: DecoderWeights, prefix: str, experts: ExpertsSpec, activation_bits: int
    ) -> None:
        self.graph, self.weights, self.prefix, self.experts = graph, weights, prefix, experts
        self._accuracy_level = ACCURACY_LEVELS[activation_bits]

    def mix(self, value: Value) -> Value:
        """[1, S, D] -> [1, S, D]."""
        experts, first, second = self.experts, self._blocks("gate"), self._blocks("down")
        choice = self._choice(value)
        inputs = [value, choice.ranks, *self._matrices(("gate", "up"), first), *self._matrices(("down",), second)]
        if choice.weights is not None:
            inputs += [*[None] * 6, choice.weights]
        settings: dict[str, Any] = {"k": experts.routing.chosen, "expert_weight_bits": 4, "block_size": first.size}
        settings |= {"normalize_routing_weights": int(experts.routing.renormalized)}
        settings |= {"activation_type": "swiglu", "swiglu_fusion": 1, "accuracy_level": self._accuracy_level}
        settings |= {"activation_alpha": SLOPES[experts.expert.activation], "activation_beta": experts.up_offset}
        if experts.limit is not None:
            settings["swiglu_limit"] = experts.limit
        return self.graph.node("QMoE", *inputs, domain=MICROSOFT, name=f"{self.prefix}.mixture", **settings)

    def _choice(self, value: Value) -> Choice:
        graph, routing = self.graph, self.experts.routing
        stored = self.weights.dense(f"{self.prefix}.{ROUTER}").T.contiguous().numpy()
        rows = graph.node("Reshape", value, graph.integers(-1, stored.shape[0]))
        products = graph.node("MatMul", rows, graph.constant(f"{self.prefix}.{ROUTER}", stored))
        if routing.bias:
            products = graph.node("Add", products, self._vector(f"{ROUTER}.bias"))
        softmax = routing.score is RouterScore.SOFTMAX
        if softmax and routing.renormalized and not routing.selection_bias and routing.limit is None:
            return Choice(products, None)  # a softmax over the chosen ones is what the operator does by itself
        scores = graph.node("Softmax", products, axis=-1) if softmax else graph.node("Sigmoid", products)
        ranks = scores
        if routing.selection_bias:
            ranks = graph.node("Add", scores, self._vector(SELECTION_BIAS))
        if routing.limit is not None:
            ranks = self._limited(ranks, routing.limit)
        return Choice(ranks, scores)

    def _limited(self, ranks: Value, limit: GroupLimit) -> Value:
        """Ranks [S, E] with those of all but the best groups' experts taken off."""
        graph, count = self.graph, self.experts.routing.experts
        grouped = graph.node("Reshape", ranks, graph.integers(-1, limit.groups, count // limit.groups))
        if limit.score is GroupScore.BEST:
            worth = graph.node("ReduceMax", grouped, graph.integers(2), keepdims=1)
        else:
            best, _ = graph.nodes("TopK", grouped, graph.integers(2), count=2, axis=2)
            worth = graph.node("ReduceSum", best, graph.integers(2), keepdims=1)
        kept, _ = graph.nodes("TopK", worth, graph.integers(limit.chosen), count=2, axis=1)
        least = graph.node("ReduceMin", kept, graph.integers(1), keepdims=1)
        eligible = graph.node("GreaterOrEqual", worth, least)
        return graph.node(
            "Reshape", graph.node("Where", eligible, grouped, graph.scalar(NEVER)), graph.integers(-1, count)
        )

    def _blocks(self, side: str) -> Blocks:
        """Of one expert's matrix, with inner channels in whole blocks."""
        blocks = Blocks.of([self._part(0, side)])
        return blocks if side == "down" else replace(blocks, rows=-(-blocks.rows // blocks.size) * blocks.size)

    def _matrices(self, sides: tuple[str, ...], blocks: Blocks) -> list[Value | None]:
        """Codes, scales and bias of all experts' matrices, those of two sides row beside row."""
        rows, width = len(sides) * blocks.rows, blocks.count * blocks.bytes_per_block
        name = f"{self.prefix}.experts.{'_'.join(sides)}"

        def stacked(part: Callable[[str], np.ndarray]) -> np.ndarray:
            experts = [expert_prefix(self.prefix, expert) for expert in range(self.experts.routing.experts)]
            pairs = [np.stack([part(f"{expert}.{side}") for side in sides], 1) for expert in experts]
            return np.stack(pairs).reshape(len(experts), rows, -1)

        def constant(label: str, part: Callable[[str], np.ndarray], dtype: ir.DataType, *shape: int) -> Value:
            whole = (self.experts.routing.experts, rows, *shape)
            return self.graph.deferred(f"{name}.{label}", lambda: stacked(part).reshape(whole), dtype, whole)

        quantized = self.weights.quantized
        codes = constant("codes", lambda part: padded_codes(quantized(part), blocks), ir.DataType.UINT8, width)
        scales = constant(
            "scales", lambda part: padded_scales(quantized(part), blocks), ir.DataType.FLOAT16, blocks.count
        )
        real = self.graph.node("Cast", scales, to=ir.DataType.FLOAT, name=f"{name}.scales.float")
        if not self.experts.expert.bias:
            return [codes, real, None]
        return [codes, real, constant("bias", lambda part: self._bias(part, blocks), ir.DataType.FLOAT)]

    def _bias(self, matrix: str, blocks: Blocks) -> np.ndarray:
        return _more_rows(self.weights.dense(f"{matrix}.bias").numpy()[:, None], blocks.rows, 0)

    def _part(self, expert: int, side: str) -> QuantizedMatrix:
        return self.weights.quantized(f"{expert_prefix(self.prefix, expert)}.{side}")

    def _vector(self, name: str) -> Value:
        return self.graph.constant(f"{self.prefix}.{name}", self.weights.dense(f"{self.prefix}.{name}").numpy())


def padded_codes(matrix: QuantizedMatrix, blocks: Blocks) -> np.ndarray:
    """uint8 [blocks.rows, bytes]: rows and columns beyond the matrix have codes of zero."""
    codes = block_codes(matrix, replace(blocks, rows=matrix.out_features)).reshape(matrix.out_features, -1)
    return _more_rows(codes, blocks.rows, 0x88)


def padded_scales(matrix: QuantizedMatrix, blocks: Blocks) -> np.ndarray:
    """float16 [blocks.rows, blocks]."""
    return _more_rows(block_scales(matrix, blocks), blocks.rows, 1)


def _more_rows(values: np.ndarray, rows: int, filler: int) -> np.ndarray:
    return np.pad(values, ((0, rows - values.shape[0]), (0, 0)), constant_values=filler)
