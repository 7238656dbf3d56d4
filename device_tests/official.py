"""The tools of others: how each is called, and what it prints in one set of terms. By hand: python -m device_tests.official TOOL FILE

They say no token ids, or none that could be compared. So what they print becomes no `latency`, whose token ids are the oracle's; it stands
beside it, with the definition that their figure has.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from exporter.errors import UsageError
from exporter.registry import Registry


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

    def checked(self) -> OfficialFigures:
        """Itself. Raises ValueError for what is no figure, and where there is none at all."""
        found = {name: value for name, value in asdict(self).items() if name not in ("tool", "definition")}
        known = {name: value for name, value in found.items() if value is not None}
        for name, value in known.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} is {value!r}")
        if not any(name.endswith(("_ms", "_per_s")) for name in known):
            raise ValueError("no time and no rate")
        return self


@dataclass(frozen=True)
class OfficialTool:
    """`program` is its name in a folder that holds it; `arguments` are what it is started with, in which the names of `PLACEHOLDERS` stand
    for what a measurement asks. None where it is no program that a shell could start."""

    name: str
    program: str
    arguments: tuple[str, ...] | None
    parse: Callable[[str], OfficialFigures]

    def read(self, text: str) -> OfficialFigures:
        """Raises ValueError when the text is not what the tool prints."""
        try:
            return replace(self.parse(text), tool=self.name).checked()
        except (KeyError, TypeError, AttributeError) as fault:
            raise ValueError(f"{type(fault).__name__}: {fault}") from None


PLACEHOLDERS: Mapping[str, str] = {
    "ARTIFACT": "folder of the export on the device",
    "RUNNER": "folder of the runner on the device",
    "PROMPT": "text of the prompt",
    "PROMPT_TOKENS": "tokens of the prompt, by the export's own tokenizer",
    "GENERATE": "tokens to generate",
    "TOTAL": "both together",
    "WARM_UP": "runs before those that count",
    "REPETITIONS": "runs that count; a tool that is told them is started once, any other once for each run",
}
PARSERS: Registry[OfficialTool] = Registry("parser")


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


def parse_qnn(text: str) -> OfficialFigures:
    """ExecuTorch's QNN runner: what its other runners print, or the one number of its file `inference_speed.txt`."""
    if "PyTorchObserver" in text:
        return parse_observer(text)
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


def parse_genai(text: str) -> OfficialFigures:
    """onnxruntime-genai's `model_benchmark`: sections of statistics in microseconds, behind a line that says what was asked."""
    asked = re.search(r"prompt tokens: (\d+), tokens to generate: (\d+)", text)
    parts = {name: body for name, body in re.findall(r"^([A-Z][^\n:]*):\n((?:\t[^\n]*\n?)+)", text, re.MULTILINE)}

    def figure(section: str, name: str) -> float:
        found = re.search(rf"^\t{re.escape(name)}:\s*(\S+)$", parts[section], re.MULTILINE)
        if found is None:
            raise ValueError(f"{section} has no {name}")
        return float(found[1])

    prompt, sampling = "Prompt processing (time to first token)", "Token sampling"
    return OfficialFigures(
        "onnxruntime-genai",
        "means over repetitions; the first token is the prompt's time and that of sampling it",
        ttft_ms=(figure(prompt, "avg (us)") + figure(sampling, "avg (us)")) / 1e3,
        prefill_tokens_per_s=figure(prompt, "avg (tokens/s)"),
        decode_tokens_per_s=figure("Token generation", "avg (tokens/s)"),
        prompt_tokens=int(asked[1]) if asked else None,
        generated_tokens=int(asked[2]) if asked else None,
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LLAMA_MAIN = "--model_path $ARTIFACT/model.pte --tokenizer_path $ARTIFACT/tokenizer.json --prompt $PROMPT --seq_len $TOTAL --temperature 0"
LLAMA_BENCH = "-m $RUNNER/model.gguf -p $PROMPT_TOKENS -n $GENERATE -r $REPETITIONS -o json"
GENAI = "-i $RUNNER -l $PROMPT_TOKENS -g $GENERATE -w $WARM_UP -r $REPETITIONS"
for tool in (
    OfficialTool("executorch", "llama_main", _words(LLAMA_MAIN), parse_observer),
    OfficialTool("executorch-qnn", "qnn_llama_runner", _words(f"{LLAMA_MAIN} --eval_mode 1"), parse_qnn),
    OfficialTool("llama-bench", "llama-bench", _words(LLAMA_BENCH), parse_llama_bench),
    OfficialTool("minibench", "minibench", None, parse_minibench),
    OfficialTool("onnxruntime-genai", "model_benchmark", _words(GENAI), parse_genai),
):
    PARSERS.add(tool.name, tool)


def parse_official(name: str, text: str) -> OfficialFigures:
    """Raises UsageError for a tool that is not known, or an output that is not its."""
    try:
        return PARSERS.get(name).read(text)
    except ValueError as fault:
        raise UsageError(f"this is not what {name} prints ({fault})", "give its whole output") from None


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
