"""Outputs of the runners of others, as they print them, in our terms."""

from __future__ import annotations

import json

import pytest

from device_tests.official import PARSERS, OfficialFigures, parse_official
from exporter.errors import UsageError

OBSERVED = {
    "prompt_tokens": 64,
    "generated_tokens": 63,
    "model_load_start_ms": 1000,
    "model_load_end_ms": 1200,
    "inference_start_ms": 1210,
    "prompt_eval_end_ms": 1300,
    "first_token_ms": 1300,
    "inference_end_ms": 1930,
    "prefill_token_per_sec": 711.1,
    "decode_token_per_sec": 100.0,
    "aggregate_sampling_time_ms": 3,
    "SCALING_FACTOR_UNITS_PER_SECOND": 1000,
}

GENAI = (
    "Batch size: 1, prompt tokens: 17, tokens to generate: 128\n"
    "Prompt processing (time to first token):\n\tavg (us):       74700\n\tavg (tokens/s): 227.577\n\tp50 (us):       74544.3\n"
    "\tstddev (us):    1180.91\n\tn:              5 * 17 token(s)\n"
    "Token generation:\n\tavg (us):       12868\n\tavg (tokens/s): 77.7119\n\tp50 (us):       12795.2\n"
    "\tstddev (us):    365.286\n\tn:              635 * 1 token(s)\n"
    "Token sampling:\n\tavg (us):       300\n\tavg (tokens/s): 3333.3\n\tp50 (us):       298.9\n"
    "\tstddev (us):    5.28\n\tn:              5 * 1 token(s)\n"
    "E2E generation (entire generation loop):\n\tavg (ms):       1709.4\n\tp50 (ms):       1708.9\n"
    "\tstddev (ms):    4.2\n\tn:              5\nPeak working set size: 120 bytes (0.00 MB)\n"
)
"""As `model_benchmark` writes it, with numbers of no machine."""


def observed(values: dict[str, float]) -> OfficialFigures:
    return parse_official("executorch", f"I 00:00:01 runner\nOnce upon a timePyTorchObserver {json.dumps(values)}\n")


def test_executorch_says_its_line_behind_generated_text() -> None:
    found = observed(OBSERVED)
    assert (found.load_ms, found.ttft_ms) == (200.0, 90.0)
    assert (found.prefill_tokens_per_s, found.decode_tokens_per_s) == (711.1, 100.0)
    assert (found.prompt_tokens, found.generated_tokens) == (64, 63)


@pytest.mark.parametrize("missing", OBSERVED)
def test_every_key_of_executorch_may_be_missing(missing: str) -> None:
    whole, found = observed(OBSERVED), observed({key: value for key, value in OBSERVED.items() if key != missing})
    lost = [name for name, value in vars(whole).items() if vars(found)[name] != value]
    assert all(vars(found)[name] is None for name in lost)


def test_units_of_executorch_are_those_that_it_names() -> None:
    assert observed({**OBSERVED, "SCALING_FACTOR_UNITS_PER_SECOND": 1_000_000}).ttft_ms == pytest.approx(0.09)


def test_the_last_run_counts() -> None:
    text = "\n".join(f"PyTorchObserver {json.dumps({**OBSERVED, 'decode_token_per_sec': rate})}" for rate in (1.0, 2.0))
    assert parse_official("executorch", text).decode_tokens_per_s == 2.0


def test_rates_that_include_the_prompt_are_kept_apart() -> None:
    found = parse_official("executorch-qnn", "34.5\n")
    assert (found.whole_tokens_per_s, found.decode_tokens_per_s) == (34.5, None)
    metrics = [("llm_model_load_time(ms)", 321.0), ("token_per_sec", 12.5)]
    text = json.dumps([{"metric": name, "actualValue": value} for name, value in metrics])
    app = parse_official("minibench", text)
    assert (app.load_ms, app.whole_tokens_per_s, app.decode_tokens_per_s) == (321.0, 12.5, None)


def test_llama_bench_tests_prompts_and_generation_apart() -> None:
    tests = [{"n_prompt": 512, "n_gen": 0, "avg_ts": 900.0}, {"n_prompt": 0, "n_gen": 128, "avg_ts": 45.0}]
    found = parse_official("llama-bench", json.dumps(tests))
    assert (found.prefill_tokens_per_s, found.decode_tokens_per_s) == (900.0, 45.0)
    assert (found.prompt_tokens, found.generated_tokens) == (512, 128)


def test_genai_counts_the_sampling_of_the_first_token_apart() -> None:
    found = parse_official("onnxruntime-genai", GENAI)
    assert found.ttft_ms == pytest.approx(75.0)
    assert (found.prefill_tokens_per_s, found.decode_tokens_per_s) == (227.577, 77.7119)
    assert (found.prompt_tokens, found.generated_tokens) == (17, 128)
    assert parse_official("onnxruntime-genai", GENAI.partition("\n")[2]).prompt_tokens is None


@pytest.mark.parametrize("cut", ["Token generation", "\tavg (us)"])
def test_genai_with_a_part_missing_is_refused(cut: str) -> None:
    with pytest.raises(UsageError, match="onnxruntime-genai"):
        parse_official("onnxruntime-genai", "\n".join(line for line in GENAI.splitlines() if not line.startswith(cut)))


def test_the_qnn_runner_may_say_what_the_others_say() -> None:
    found = parse_official("executorch-qnn", f"PyTorchObserver {json.dumps(OBSERVED)}\n")
    assert (found.tool, found.ttft_ms) == ("executorch-qnn", 90.0)


@pytest.mark.parametrize("tool", PARSERS)
@pytest.mark.parametrize(
    "text", ["", "{}", "[]x", "PyTorchObserver {", "[3]", "PyTorchObserver {}", "nan", "inf", "-3"]
)
def test_what_is_no_output_of_a_tool_is_refused(tool: str, text: str) -> None:
    with pytest.raises(UsageError, match=tool):
        parse_official(tool, text)


def test_an_unknown_tool_gets_the_known_ones() -> None:
    with pytest.raises(UsageError, match="executorch, executorch-qnn"):
        parse_official("other", "")
