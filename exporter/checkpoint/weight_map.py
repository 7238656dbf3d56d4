"""Where a checkpoint keeps the decoder's weights: canonical names to tensors, as data.

A tensor may hold several weights (fused projections), lie transposed, or lack a constant that the model multiplies by or adds; all
of that is undone while it is read, so that no target knows of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the plan knows families and must stay free of torch
    import torch

LAYERS = "layers."
BIAS = ".bias"
NUMBERED = re.compile(r"^(?P<block>.+\.(?:experts|heads))\.(?P<number>\d+)\.(?P<rest>.+)$")


@dataclass(frozen=True)
class Rows:
    """Which rows of a fused tensor belong to a weight: `count` rows from `start` on, in every run of `period` rows."""

    start: int
    count: int
    period: int


def fused(*counts: int) -> tuple[Rows, ...]:
    """The parts of a tensor in which weights with so many rows lie one above the other, once or over and over."""
    return tuple(Rows(sum(counts[:index]), count, sum(counts)) for index, count in enumerate(counts))


@dataclass(frozen=True)
class Source:
    """A weight as a tensor of the files: value = part * factor + offset. `{}` in the name stands for the number of the layer; a second
    one for that of the expert.

    `row_factors` holds further factors for so many rows each, one after another: a fused weight whose parts are scaled apart.
    """

    tensor: str
    rows: Rows | None = None
    transposed: bool = False
    factor: float = 1.0
    offset: float = 0.0
    members: int = 0
    """A tensor that holds this weight of so many experts, first axis; 0 for a tensor of its own."""
    member: int = 0
    rows_per_member: int = 0
    """Of a tensor that holds the rows of one head after another: how many each has."""
    order: tuple[int, ...] = ()
    """In every run of so many rows of the weight, the number that each has in the tensor."""
    turned: bool = False
    """Whether the weight's rows, once taken, lie transposed."""
    row_factors: tuple[tuple[int, float], ...] = ()

    @property
    def slab(self) -> slice:
        """The part of the tensor, along its first axis, that has to be read for this weight."""
        return slice(self.member, self.member + 1) if self.members else slice(None)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the tensor that holds a weight of this shape."""
        shape = shape[::-1] if self.turned else shape
        if self.rows is not None:
            shape = (shape[0] // self.rows.count * self.rows.period, *shape[1:])
        shape = shape[::-1] if self.transposed else shape
        return (self.members, *shape) if self.members else shape

    def stored_rows(self, rows: slice | torch.Tensor, stored: int) -> slice | torch.Tensor | None:
        """Which rows of the tensor, which has `stored` of them, are these rows of the weight; None when they are none of its rows."""
        if (
            self.transposed
            or self.members
            or self.order
            or self.turned
            or (self.rows is not None and self.rows.period != stored)
        ):
            return None
        if self.rows is None:
            return rows
        if not isinstance(rows, slice):
            return rows + self.rows.start
        start, stop, _ = rows.indices(self.rows.count)
        return slice(self.rows.start + start, self.rows.start + stop)

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        """The weight's part of the slab that was read, rows first."""
        if self.members:
            tensor = tensor[0]
        if self.transposed:
            tensor = tensor.T
        if self.rows is not None:
            runs = tensor.unflatten(0, (-1, self.rows.period))
            tensor = runs[:, self.rows.start : self.rows.start + self.rows.count].flatten(0, 1)
        if self.order:
            tensor = tensor.unflatten(0, (-1, len(self.order)))[:, list(self.order)].flatten(0, 1)
        return (tensor.T if self.turned else tensor).contiguous()

    def scaled(self, part: torch.Tensor, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        """Factors and offset applied to these rows of the weight."""
        if self.factor != 1.0:
            part = part * self.factor
        if self.row_factors:
            factors = [factor for count, factor in self.row_factors for _ in range(count)]
            part = part * part.new_tensor(factors)[rows].view(-1, *[1] * (part.dim() - 1))
        return part + self.offset if self.offset else part


@dataclass(frozen=True)
class WeightMap:
    """Sources by canonical name, layers, experts and heads without their number: "layers.attention.query". A bias is found beside its
    matrix or gain.

    `prefix` begins the tensors' names in a checkpoint of a language model; one saved from the bare decoder lacks it. `former` holds
    what older checkpoints call a tensor. `packed` holds where some weights lie in checkpoints that store them in few bits.
    """

    sources: dict[str, Source]
    prefix: str = "model."
    former: dict[str, str] = field(default_factory=dict)
    packed: dict[str, Source] = field(default_factory=dict)

    @staticmethod
    def of(names: dict[str, str], prefix: str = "model.", former: dict[str, str] | None = None) -> WeightMap:
        """Weights that are whole tensors."""
        return WeightMap({name: Source(tensor) for name, tensor in names.items()}, prefix, former or {})

    def source(self, name: str) -> Source:
        """Where a weight lies, by its canonical name with the layer's number."""
        own = name.removesuffix(BIAS) in self.sources or name in self.sources
        if own or not name.startswith(LAYERS):  # one layer may be an exception
            return self._find(name)
        _, index, rest = name.split(".", 2)
        numbered = NUMBERED.match(rest)
        if numbered is None:
            found = self._find(f"{LAYERS}{rest}")
            return replace(found, tensor=found.tensor.format(index))
        found = self._find(f"{LAYERS}{numbered['block']}.{numbered['rest']}")
        number = int(numbered["number"])
        return replace(
            found,
            tensor=found.tensor.format(index, number),
            rows=found.rows and replace(found.rows, start=found.rows.start + number * found.rows_per_member),
            member=number if found.members else 0,
        )

    def including(self, sources: dict[str, Source]) -> WeightMap:
        """The same map with more sources, or others."""
        return replace(self, sources=self.sources | sources)

    def candidates(self, name: str) -> tuple[Source, ...]:
        """Every way in which a checkpoint may name the tensor of a weight, the usual one first."""
        usual = self.source(name)
        tensors = (usual.tensor, usual.tensor.removeprefix(self.prefix), self.former.get(usual.tensor))
        found = tuple(replace(usual, tensor=tensor) for tensor in tensors if tensor is not None)
        packed = replace(self.including(self.packed), packed={}).candidates(name) if self.packed else ()
        return found + packed

    def changed(self, names: Iterable[str], **changes: object) -> WeightMap:
        """The same map with these fields of some sources changed."""
        return self.including({name: replace(self.sources[name], **changes) for name in names})  # type: ignore[arg-type]

    def joined(self, tensor: str, names: Iterable[str], counts: Iterable[int]) -> WeightMap:
        """The same map with some weights lying one above the other in one tensor."""
        return self.including({name: Source(tensor, rows) for name, rows in zip(names, fused(*counts), strict=True)})

    def _find(self, name: str) -> Source:
        if name in self.sources or not name.endswith(BIAS):
            return self.sources[name]
        beside = self.sources[name.removesuffix(BIAS)]
        return replace(beside, tensor=beside.tensor.removesuffix(".weight") + BIAS, transposed=False, offset=0.0)


QUERY_KEY_VALUE = ("layers.attention.query", "layers.attention.key", "layers.attention.value")
GATE_UP = ("layers.feed_forward.gate", "layers.feed_forward.up")
RESIDUALS = ("layers.attention.output", "layers.feed_forward.down")
"""Matrices whose products are added to the hidden states."""


def scaled_ends(weights: WeightMap, tied: bool, embedding: float = 1.0, logits: float = 1.0) -> WeightMap:
    """The same map with a factor on embeddings and one on logits. A head that shares the scaled table is evened out by the norm
    before it, which the factor on logits passes through as well."""
    scaled = weights.changed(["embedding"], factor=embedding)
    return _scaled_final_norm(scaled, logits / embedding if tied else logits)


def _scaled_final_norm(weights: WeightMap, factor: float) -> WeightMap:
    """factor * (stored + offset) = stored * factor + offset * factor."""
    norm = weights.sources["final_norm"]
    return weights.changed(["final_norm"], factor=norm.factor * factor, offset=norm.offset * factor)


LLAMA_WEIGHTS = WeightMap.of(
    {
        "embedding": "model.embed_tokens.weight",
        "layers.attention_norm": "model.layers.{}.input_layernorm.weight",
        "layers.attention.query": "model.layers.{}.self_attn.q_proj.weight",
        "layers.attention.key": "model.layers.{}.self_attn.k_proj.weight",
        "layers.attention.value": "model.layers.{}.self_attn.v_proj.weight",
        "layers.attention.query_norm": "model.layers.{}.self_attn.q_norm.weight",
        "layers.attention.key_norm": "model.layers.{}.self_attn.k_norm.weight",
        "layers.attention.output": "model.layers.{}.self_attn.o_proj.weight",
        "layers.feed_forward_norm": "model.layers.{}.post_attention_layernorm.weight",
        "layers.feed_forward.gate": "model.layers.{}.mlp.gate_proj.weight",
        "layers.feed_forward.up": "model.layers.{}.mlp.up_proj.weight",
        "layers.feed_forward.down": "model.layers.{}.mlp.down_proj.weight",
        "final_norm": "model.norm.weight",
        "head": "lm_head.weight",
    }
)
"""The naming that Llama introduced and most dense families share."""
