"""What a host must know beside the graph's own inputs and outputs: `host.json`."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.decoder.cache import LayerCache
from exporter.targets.host_file import HostFile


@dataclass(frozen=True)
class HostLayout(HostFile):
    """`rings` holds every kind of cache by its name, which the names of the graph's inputs end with."""

    context: int
    chunk: int
    vocab_size: int
    threads: int
    rings: dict[str, LayerCache]
