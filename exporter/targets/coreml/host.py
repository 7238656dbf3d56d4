"""What a host must know beside the package's own inputs, outputs and states: `host.json`, and the package's metadata."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from exporter.targets.host_file import HostFile


@dataclass(frozen=True)
class HostLayout(HostFile):
    """`context` tokens fit into the cache; `prefill` takes `chunk` tokens and starts at multiples of it."""

    context: int
    chunk: int
    vocab_size: int

    def metadata(self) -> dict[str, str]:
        """The same for an app, as `MLModel.modelDescription.metadata` gives it."""
        return {name: str(number) for name, number in asdict(self).items()}
