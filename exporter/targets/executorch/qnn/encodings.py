"""Chooses the 16-bit encoding of every value from ranges seen in calibration.

Operators that only move data share one encoding between inputs and outputs, found by union-find, so nothing is rounded twice.
Scores below the largest of their row by more than `SOFTMAX_SPAN` weigh nothing, so the range of scores is cut there and the mask
simply saturates to its floor: the finest score resolution that 16 bits allow.
"""

from __future__ import annotations

import torch

from exporter.targets.executorch.qnn.graph import MOVES_DATA, Encoding, HtpGraph, Storage, Value

SOFTMAX_SPAN = 14.0
"""exp(-14) is below one step of the 16-bit probabilities."""

MASK = "mask"
"""Key of the one encoding that all mask inputs share; their names begin with it."""

MARGIN = 0.05
"""Calibrated ranges are widened by this share of their span on each side that is not zero."""


class RangeRecorder:
    """Lowest and highest value of every tensor over all calibration chunks."""

    def __init__(self, graph: HtpGraph) -> None:
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}
        self._score_scales = {
            operation.inputs[0].name: float(operation.parameters["beta"])
            for operation in graph.operations
            if operation.kind == "Softmax"
        }

    def observe(self, value: Value, data: torch.Tensor) -> torch.Tensor:
        if value.storage is Storage.INT32:
            return data
        if value.fixed is not None:
            return value.fixed.snap(data)
        low, high = float(data.min()), float(data.max())
        if value.name in self._score_scales:
            low = float(data.amax(-1).min()) - SOFTMAX_SPAN / self._score_scales[value.name]
        self.low[value.name] = min(low, self.low.get(value.name, low))
        self.high[value.name] = max(high, self.high.get(value.name, high))
        return data


def choose_encodings(graph: HtpGraph, recorder: RangeRecorder) -> dict[str, Encoding]:
    """Encoding of every value of the graph by name; valid for every method built from the same decoder."""
    groups = _encoding_groups(graph)
    values = {value.name: value for value in graph.inputs} | {op.output.name: op.output for op in graph.operations}
    _limit_scores(graph, recorder, groups)
    encodings: dict[str, Encoding] = {}
    for members in groups.values():
        members = [name for name in members if values[name].storage is not Storage.INT32]
        if not members:
            continue
        fixed = [encoding for name in members if (encoding := values[name].fixed) is not None]
        chosen = fixed[0] if fixed else _range_encoding(members, recorder)
        for name in members:
            encodings[name] = values[name].fixed or chosen
    encodings[MASK] = _mask_encoding(graph, encodings)
    return encodings


def extend_encodings(graph: HtpGraph, encodings: dict[str, Encoding]) -> dict[str, Encoding]:
    """Encodings for another method of the same decoder: values it alone has are inputs, or moves of values that both have."""
    extended = dict(encodings)
    for value in graph.inputs:
        if value.name not in extended or value.name.startswith(MASK):
            extended[value.name] = value.fixed or encodings[MASK]
    for operation in graph.operations:
        output, source = operation.output, operation.inputs[0]
        if output.name not in extended and output.storage is not Storage.INT32:
            if operation.kind not in MOVES_DATA or not isinstance(source, Value):
                raise ValueError(f"{graph.name}: {output.name} was not calibrated")
            extended[output.name] = extended[source.name]
    return extended


def _range_encoding(members: list[str], recorder: RangeRecorder) -> Encoding:
    low, high = min(recorder.low[name] for name in members), max(recorder.high[name] for name in members)
    margin = MARGIN * (high - low)
    return Encoding.of_range(low - margin if low < 0 else low, high + margin if high > 0 else high)


def _limit_scores(graph: HtpGraph, recorder: RangeRecorder, groups: dict[str, list[str]]) -> None:
    """Raw scores share the masked scores' range: nothing below its floor matters. Capped ones have an encoding of their own."""
    leader = {name: key for key, members in groups.items() for name in members}
    for operation in graph.operations:
        if operation.kind != "Softmax":
            continue
        masked = operation.inputs[0]
        assert isinstance(masked, Value)
        producer = next(op for op in graph.operations if op.output.name == masked.name)
        raw = producer.inputs[0]
        assert isinstance(raw, Value)
        for name in groups[leader[raw.name]]:
            if name in recorder.low:
                recorder.low[name] = max(recorder.low[name], recorder.low[masked.name])


def _mask_encoding(graph: HtpGraph, encodings: dict[str, Encoding]) -> Encoding:
    """Code 65535 is zero (visible); code 0 is lower than any layer's whole score range (hidden)."""
    spans = [
        encodings[operation.inputs[0].name].high - encodings[operation.inputs[0].name].low
        for operation in graph.operations
        if operation.kind == "Softmax" and isinstance(operation.inputs[0], Value)
    ]
    return Encoding(Storage.UINT16, max(spans) / 65535, 65535)


def _encoding_groups(graph: HtpGraph) -> dict[str, list[str]]:
    """Values that must share an encoding, by a representative's name."""
    parent: dict[str, str] = {value.name: value.name for value in graph.inputs}
    parent.update({operation.output.name: operation.output.name for operation in graph.operations})

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for operation in graph.operations:
        if operation.kind in MOVES_DATA and operation.output.storage is Storage.UINT16:
            for operand in operation.inputs:
                if isinstance(operand, Value):
                    parent[find(operand.name)] = find(operation.output.name)
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(find(name), []).append(name)
    return groups
