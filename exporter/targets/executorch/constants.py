"""Constants of a traced program."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Constants(nn.Module):
    """Named constants, each made and registered once however often the decoder is traced: while torch.export watches, nothing can be
    computed from weights."""

    def constant(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        attribute = name.replace(".", "_")
        if not hasattr(self, attribute):
            self.register_buffer(attribute, make().contiguous())
        found: torch.Tensor = getattr(self, attribute)
        return found
