"""What a runner is told, and what it answers: one JSON object per line, the same for every engine and device.

A runner is started with the path of a request file. It loads the artifact, repeats every prompt, and prints events. It ends when its
standard input does, so that nothing outlives a host or a connection that has gone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from exporter.errors import ChildFailed

PROTOCOL_VERSION = 1
REQUEST_FILE = "request.json"


@dataclass(frozen=True)
class RunnerRequest:
    """One measurement. `artifact` is a folder on the device. Every prompt is run `warm_up + repetitions` times from an empty cache, and
    greedily continued to `generated_tokens` tokens. `probe_bytes` are the sizes of the buffers whose reading is timed at the end.
    `driver` is for the Python runner alone."""

    artifact: str
    prompts: tuple[tuple[int, ...], ...]
    generated_tokens: int
    warm_up: int
    repetitions: int
    probe_bytes: tuple[int, ...]
    driver: str = ""
    protocol: int = PROTOCOL_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> RunnerRequest:
        return TypeAdapter(RunnerRequest).validate_json(text)


@dataclass(frozen=True)
class Loaded:
    """The artifact is ready. `threads` 0 leaves the number to the engine; `affinity` lists the cores that the runner may use."""

    engine: str
    load_ns: int
    threads: int
    affinity: str
    protocol: int


@dataclass(frozen=True)
class Repetition:
    """One prompt run once: `ttft_ns` from its start to its first token, `decode_ns` between each token and the one before."""

    prompt: int
    index: int
    warm_up: bool
    ttft_ns: int
    token_ids: tuple[int, ...]
    decode_ns: tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """Largest resident set until now, and bytes of the cache with all its slots."""

    peak_rss_bytes: int
    kv_bytes: int


@dataclass(frozen=True)
class Probe:
    """Times of reading one buffer, by as many threads as the engine uses; `threads` is that number."""

    bytes: int
    threads: int
    ns: tuple[int, ...]


@dataclass(frozen=True)
class Ended:
    """The runner's last word; without it a run is not complete."""


Event = Loaded | Repetition | Memory | Probe | Ended
EVENTS: dict[str, type[Event]] = {
    "loaded": Loaded,
    "repetition": Repetition,
    "memory": Memory,
    "probe": Probe,
    "ended": Ended,
}
NAMES = {kind: name for name, kind in EVENTS.items()}


def event_line(event: Event) -> str:
    """As a runner prints it."""
    return json.dumps({"event": NAMES[type(event)], **asdict(event)})


def parse_line(line: str) -> Event | None:
    """An event, or None for a line that a library printed in between. Raises ChildFailed for an event that is not as it must be."""
    if not line.startswith('{"event"'):
        return None
    try:
        values = json.loads(line)
        if values["event"] == "error":
            raise ChildFailed(f"the runner stopped: {values['message']}")
        event = TypeAdapter(EVENTS[values["event"]]).validate_python(values)
    except (json.JSONDecodeError, KeyError, ValidationError):
        raise ChildFailed(f"the runner printed what is no event of the protocol: {line[:120]}") from None
    if isinstance(event, Loaded) and event.protocol != PROTOCOL_VERSION:
        raise ChildFailed(f"the runner speaks protocol {event.protocol}, not {PROTOCOL_VERSION}", "build it again")
    return event
