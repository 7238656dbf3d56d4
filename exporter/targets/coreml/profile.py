"""What the package is shaped for: the GPU (and CPU), or the Neural Engine."""

from __future__ import annotations

import math
from enum import StrEnum

SLOT_ALIGNMENT = 32
"""The Neural Engine pads the last axis of a state to multiples of this."""


class Profile(StrEnum):
    """The two shapes of a package."""

    GPU = "gpu"
    NEURAL_ENGINE = "neural_engine"

    @property
    def channels_first(self) -> bool:
        return self is Profile.NEURAL_ENGINE

    def slot_multiple(self, chunk: int) -> int:
        """Chunks start at multiples of their length, and none may run past the end of a cache."""
        return math.lcm(chunk, SLOT_ALIGNMENT) if self.channels_first else chunk
