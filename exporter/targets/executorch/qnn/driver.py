"""Drives an NPU artifact in the HTP simulator: the host loop of `host.py` around the two methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from exporter.targets.executorch.qnn import sdk
from exporter.targets.executorch.qnn.graph import Storage, Value
from exporter.targets.executorch.qnn.host import Host, HostLayout
from exporter.targets.executorch.qnn.lower import DECODE, EMBEDDING_FILE, HOST_FILE, PREFILL, PROGRAM_FILE


class EmbeddingTable:
    """Rows of the token table: codes uint8 [V, ceil(D / 2)], low nibble first, or int8 [V, D]; scales float16 [V, groups]."""

    def __init__(self, codes: np.ndarray, scales: np.ndarray, hidden_size: int, group_size: int) -> None:
        self.codes, self.scales = codes, scales.astype(np.float32)
        self.hidden_size, self.group_size = hidden_size, group_size

    def row(self, token_id: int) -> np.ndarray:
        """float32 [D]."""
        packed = self.codes[token_id]
        if packed.dtype == np.uint8:
            nibbles = np.stack((packed & 0xF, packed >> 4), axis=-1).reshape(-1)[: self.hidden_size].astype(np.int8)
            values = np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.float32)
        else:
            values = packed.astype(np.float32)
        return values * np.repeat(self.scales[token_id], self.group_size)[: self.hidden_size]


class QnnDriver:
    """Prefill in chunks, then decode token by token; see `runtime.driver.Driver`."""

    def __init__(self, methods: dict[str, Any], layout: HostLayout, table: EmbeddingTable) -> None:
        self._methods, self._layout, self._table = methods, layout, table
        self.context, self.chunk, self.vocab_size = layout.context, layout.chunk, layout.vocab_size
        self.reset()

    def reset(self) -> None:
        self._host = Host(self._layout, self._table.row)

    def prefill(self, token_ids: list[int]) -> np.ndarray:
        """float32 [n, V]: logits after each of n tokens."""
        logits = [
            self._call(PREFILL, token_ids[at : at + self.chunk], self.chunk)
            for at in range(0, len(token_ids), self.chunk)
        ]
        return np.concatenate(logits)

    def prompt(self, token_ids: list[int]) -> np.ndarray:
        """float32 [V]: logits after the last token."""
        return self.prefill(token_ids)[-1]

    def decode(self, token_id: int) -> np.ndarray:
        """float32 [V]."""
        return self._call(DECODE, [token_id], 1)[0]

    def kv_bytes(self) -> int:
        return sum(ring.nbytes() for ring in self._host.rings)

    def _call(self, method: str, token_ids: list[int], chunk: int) -> np.ndarray:
        return self._host.commit(self._methods[method](self._host.inputs(token_ids, chunk)), len(token_ids))


def open_driver(folder: Path) -> QnnDriver:
    """Opens an export's verification twin: the simulator cannot load the shipped program's shared weights."""
    sdk.prepare_environment()
    from exporter.targets.executorch.qnn.program import GraphSignature
    from exporter.targets.executorch.qnn.simulator import load_methods

    sdk.load_libraries()
    description = json.loads((folder / HOST_FILE).read_text(encoding="utf-8"))
    layout = HostLayout.from_json(description["layout"])
    signatures = [
        GraphSignature(name, _values(method["inputs"]), _values(method["outputs"]))
        for name, method in description["methods"].items()
    ]
    table = load_file(folder / EMBEDDING_FILE)
    methods = load_methods(folder / "verification" / PROGRAM_FILE, signatures)
    rows = EmbeddingTable(table["codes"], table["scales"], layout.hidden_size, layout.embedding_group_size)
    return QnnDriver(methods, layout, rows)


def _values(entries: list[dict[str, Any]]) -> tuple[Value, ...]:
    return tuple(Value(entry["name"], tuple(entry["shape"]), storage=Storage(entry["storage"])) for entry in entries)
