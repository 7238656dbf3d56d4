"""How tensors lie in a graph, and in which types numbers live between the products.

Rows (GPU, CPU): hidden states [1, S, D], heads [1, S, heads, Hd]. Products are fp16; between them everything is fp32, as norms, rotations
and KV codecs are: it costs little there, and massive activations cannot overflow.

Channels first (Neural Engine): hidden states [1, D, 1, S], heads [1, heads, Hd, S]. Products are 1x1 convolutions, and everything is
fp16, because that hardware has nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.targets.coreml.graph import KINDS


@dataclass(frozen=True)
class Layout:
    """One of the two layouts."""

    channels_first: bool

    @property
    def between(self) -> str:
        """Type of values between products."""
        return "fp16" if self.channels_first else "fp32"

    @property
    def channel_axis(self) -> int:
        """Axis of hidden channels, [1, S, D] or [1, D, 1, S]."""
        return 1 if self.channels_first else 2

    @property
    def token_axis(self) -> int:
        """Axis of the tokens of hidden states."""
        return 3 if self.channels_first else 1

    @property
    def head_channel_axis(self) -> int:
        """Axis of a head's channels, [1, S, heads, Hd] or [1, heads, Hd, S]."""
        return 2 if self.channels_first else 3

    @property
    def cached_channel_axis(self) -> int:
        """Axis of a head's channels in what a cache gets and gives, [1, K, S, Hd] or [1, K, Hd, S]."""
        return 2 if self.channels_first else 3

    def flat_shape(self, tokens: int, channels: int) -> list[int]:
        return [1, channels, 1, tokens] if self.channels_first else [1, tokens, channels]

    def head_shape(self, tokens: int, heads: int, width: int) -> list[int]:
        return [1, heads, width, tokens] if self.channels_first else [1, tokens, heads, width]

    def per_channel(self, numbers: np.ndarray) -> np.ndarray:
        """Constants [D] that broadcast over hidden states, or over heads where all heads share them."""
        stored = numbers.astype(KINDS[self.between])
        return stored[:, None, None] if self.channels_first else stored

    def per_head_channel(self, numbers: np.ndarray) -> np.ndarray:
        """Constants [heads, Hd], or [Hd] for all heads, that broadcast over heads."""
        stored = numbers.astype(KINDS[self.between])
        return stored[..., None] if self.channels_first else stored


ROWS, CHANNELS_FIRST = Layout(channels_first=False), Layout(channels_first=True)
