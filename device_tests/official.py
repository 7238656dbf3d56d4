"""What the runners of others print, in one set of terms: python -m device_tests.official TOOL FILE

They run programs of their own exporters and say no token ids, or none that could be compared. So what they print becomes no `latency`,
whose token ids are the oracle's; it stands beside it, with the definition that their figure has.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.errors import UsageError


@dataclass(frozen=True)
class OfficialFigures:
    """None where a tool does not say. `definition` tells how its figures differ from ours (`device_tests.statistics.DEFINITIONS`)."""

    tool: str
    definition: str
    load_ms: float | None = None
    ttft_ms: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    whole_tokens_per_s: float | None = None
    """Generated tokens over a time that includes the prompt: not comparable with `decode_tokens_per_s`."""
    prompt_tokens: int | None = None
    generated_tokens: int | None = None


def parse_observer(text: str) -> OfficialFigures:
    """ExecuTorch's runners: `PyTorchObserver {...}`, possibly behind generated text; the last one counts. Whole milliseconds, and a rate
    is left out where its time was 0."""
    lines = re.findall(r"PyTorchObserver (\{.*\})", text)
    if not lines:
        raise ValueError("no line with PyTorchObserver")
    said: Mapping[str, Any] = json.loads(lines[-1])
    ms = 1e3 / float(said.get("SCALING_FACTOR_UNITS_PER_SECOND") or 1000)

    def between(start: str, end: str) -> float | None:
        return (said[end] - said[start]) * ms if start in said and end in said else None

    return OfficialFigures(
        "executorch",
        "first token counted from before the text is cut into tokens; no time of single tokens",
        between("model_load_start_ms", "model_load_end_ms"),
        between("inference_start_ms", "first_token_ms"),
        said.get("prefill_token_per_sec"),
        said.get("decode_token_per_sec"),
        None,
        said.get("prompt_tokens"),
        said.get("generated_tokens"),
    )


def parse_inference_speed(text: str) -> OfficialFigures:
    """ExecuTorch's QNN runner: one number in `inference_speed.txt`."""
    return OfficialFigures(
        "executorch-qnn", "generated tokens over the whole time, the prompt included", whole_tokens_per_s=float(text)
    )


def parse_minibench(text: str) -> OfficialFigures:
    """ExecuTorch's Android benchmark app: `benchmark_results.json`, a list of metrics."""
    said = {item["metric"]: float(item["actualValue"]) for item in json.loads(text)}
    if "token_per_sec" not in said:
        raise ValueError("no metric token_per_sec")
    return OfficialFigures(
        "minibench",
        "tokens over the time of generation as the app sees it, prompt included",
        said.get("llm_model_load_time(ms)"),
        whole_tokens_per_s=said.get("token_per_sec"),
    )


def parse_llama_bench(text: str) -> OfficialFigures:
    """llama.cpp's `llama-bench -o json`: prompts and generation are tests of their own, each from an empty cache."""
    tests = json.loads(text)
    prompts = [item for item in tests if item["n_prompt"] and not item["n_gen"]]
    generated = [item for item in tests if item["n_gen"] and not item["n_prompt"]]
    if not prompts and not generated:
        raise ValueError("no test of a prompt or of generation alone")
    return OfficialFigures(
        "llama-bench",
        "means over repetitions; generation starts from an empty cache, and nothing is sampled",
        prefill_tokens_per_s=float(prompts[-1]["avg_ts"]) if prompts else None,
        decode_tokens_per_s=float(generated[-1]["avg_ts"]) if generated else None,
        prompt_tokens=int(prompts[-1]["n_prompt"]) if prompts else None,
        generated_tokens=int(generated[-1]["n_gen"]) if generated else None,
    )


PARSERS: dict[str, Callable[[str], OfficialFigures]] = {
    "executorch": parse_observer,
    "executorch-qnn": parse_inference_speed,
    "minibench": parse_minibench,
    "llama-bench": parse_llama_bench,
}


def parse_official(tool: str, text: str) -> OfficialFigures:
    """Raises UsageError for a tool that is not known, or an output that is not its."""
    if tool not in PARSERS:
        raise UsageError(f"no parser {tool!r}", f"use one of {', '.join(PARSERS)}")
    try:
        return PARSERS[tool](text)
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise UsageError(f"this is not what {tool} prints ({fault})", "give its whole output") from None


def main() -> None:
    """Prints the figures of a file as JSON."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: python -m device_tests.official {{{','.join(PARSERS)}}} FILE")
    try:
        figures = parse_official(sys.argv[1], Path(sys.argv[2]).read_text(encoding="utf-8"))
    except UsageError as fault:
        sys.exit(str(fault))
    print(json.dumps(asdict(figures), indent=1))


if __name__ == "__main__":
    main()
