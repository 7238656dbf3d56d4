"""Text generation with an exported artifact, streamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exporter.checkpoint.config import Config
from exporter.checkpoint.text import TextCodec
from exporter.child import stream_child
from exporter.errors import PlanRefused, UsageError
from exporter.manifest import exported_recipe, read_manifest
from exporter.runtime.sampling import SamplingSettings
from exporter.stage_cache import StageCache, cache_root, content_key
from exporter.targets.base import Obtained, find_target

GENERATE_TIME_LIMIT_S = 3600.0


def generate(folder: Path, prompt: str, limit: int, sampling: SamplingSettings) -> Iterator[str]:
    """Yields pieces of text as tokens come. Raises UsageError on an empty or too long prompt."""
    sampling.check()
    target = find_target(exported_recipe(folder, read_manifest(folder)).target.kind)
    if target.obtained is Obtained.GRAPH:
        raise PlanRefused(f"{target.backend}: no runtime on this machine runs the artifact", "use an app on a device")
    config = Config.read(folder / "config.json")
    codec = TextCodec.read(folder, config, config.integer("vocab_size"))
    token_ids = codec.encode(prompt)
    if not token_ids:
        raise UsageError("the prompt is empty", "pass --prompt with some text")
    logs = StageCache(cache_root(), resume=True).logs(content_key({"generate": str(folder.resolve())}))
    arguments = {
        "driver": target.driver,
        "folder": str(folder),
        "token_ids": token_ids,
        "end_ids": list(codec.end_ids),
        "limit": limit,
        "sampling": asdict(sampling),
    }
    log = logs / "generate.log"
    with closing(
        stream_child("exporter.runtime.driver:generate_in_child", arguments, log, GENERATE_TIME_LIMIT_S)
    ) as events:
        yield from _pieces(codec, events)


def _pieces(codec: TextCodec, events: Iterable[dict[str, Any]]) -> Iterator[str]:
    produced: list[int] = []
    shown = ""
    for event in events:
        if "token" not in event:
            continue
        produced.append(int(event["token"]))
        text = codec.decode(produced)
        if text.endswith("\ufffd"):
            continue  # an unfinished character: wait for its remaining bytes
        yield text[len(shown) :]
        shown = text
