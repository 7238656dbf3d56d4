"""What a host must know beside the methods' own signatures: `host.json`."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.targets.host_file import HostFile


@dataclass(frozen=True)
class HostLayout(HostFile):
    """Longest conversation, most tokens of one call, size of the vocabulary, threads (0: the runtime chooses), and whether the program
    calls operators of this project's library."""

    context: int
    chunk: int
    vocab_size: int
    threads: int
    own_operators: bool
