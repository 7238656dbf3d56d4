"""Latent attention (arXiv 2405.04434) as data. No torch: the plan reads this.

What is cached of a token is one vector that all heads share: a rotated key of `rotary` channels, and behind it the `rank` channels of a
normalized latent. Keys and values of a head are products of that latent, so a query can be brought to it instead: per head, the part
of the query that is not rotated is multiplied by a matrix [rank, plain], and what attention makes of the latents by one [value, rank].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exporter.decoder.spec import AttentionSpec

LATENT, ROTARY_KEY = "latent", "rotary_key"
QUERY_DOWN, QUERY = "query_down", "queries"
ABSORB, EXPAND = "absorb", "expand"
LATENT_EPS = 1e-6
"""Of the norms of latents, whatever the config says of the others."""


@dataclass(frozen=True)
class LatentSpec:
    """Channels of the cached latent (`rank`) and of the rotated key beside it, of a head's query that is not rotated (`plain`) and of
    its value. With `query_rank`, queries too are made from a normalized latent, of so many channels."""

    rank: int
    rotary: int
    plain: int
    value: int
    query_rank: int | None = None

    @property
    def cached(self) -> int:
        """Channels that a token's cache holds: once, for keys and values alike."""
        return self.rank + self.rotary

    def matrices(self, attention: AttentionSpec, hidden: int) -> list[tuple[str, int, int, bool]]:
        """Name, rows, columns and whether there is a bias, of every matrix of the block."""
        heads, bias = attention.query_heads, attention.query_key_value_bias
        rows = heads * (self.rotary + self.plain)
        query = [(QUERY, rows, hidden, False)]
        if self.query_rank is not None:
            query = [(QUERY_DOWN, self.query_rank, hidden, bias), (QUERY, rows, self.query_rank, False)]
        return [
            *query,
            *((head_matrix(ABSORB, head), self.rank, self.plain, False) for head in range(heads)),
            (LATENT, self.rank, hidden, bias),
            (ROTARY_KEY, self.rotary, hidden, bias),
            *((head_matrix(EXPAND, head), self.value, self.rank, False) for head in range(heads)),
            ("output", hidden, heads * self.value, attention.output_bias),
        ]

    def gains(self) -> list[tuple[str, int]]:
        """Name and channels of the norms of latents."""
        query = [] if self.query_rank is None else [(f"{QUERY_DOWN}_norm", self.query_rank)]
        return [*query, (f"{LATENT}_norm", self.rank)]


def head_matrix(name: str, head: int) -> str:
    """Of one head: "heads.3.absorb"."""
    return f"heads.{head}.{name}"
