"""Published members are planned from the values of their `config.json` alone, as a user without weights does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run
from published_members import MEMBERS

from exporter.checkpoint.config import Config
from exporter.checkpoint.family import find_family
from exporter.checkpoint.text_part import text_part
from exporter.decoder.spec import AttentionSpec

LONG = ("--set", "cache.context=1024", "--set", "verify.window=1024")
"""Every ring of a published member wraps within this."""

WANTED = (
    "gemma-3-1b",
    "gemma-3-4b text decoder",
    "Phi-3-mini-4k-instruct",
    "phi-4",
    "SmolLM3-3B",
    "Qwen3-0.6B",
    "Qwen3-1.7B",
    "Qwen3-4B",
    "Qwen3-8B",
    "Llama-3.2-1B",
    "Llama-3.2-3B",
    "TinyLlama-1.1B",
    "Mistral-7B-v0.1",
    "Mixtral-8x7B-v0.1",
    "falcon-7b",
)


def test_the_best_known_members_are_among_them() -> None:
    assert set(WANTED) <= set(MEMBERS)


def token_bytes(attention: AttentionSpec | None) -> int:
    """INT8 codes and an fp16 scale per cached vector; a latent is one vector, a recurrent layer caches none."""
    if attention is None:
        return 0
    return (1 if attention.latent else 2) * attention.kv_heads * (attention.head_dim + 2)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_published_config_is_planned_without_weights(name: str, tmp_path: Path, run: Run) -> None:
    values, parameters = MEMBERS[name]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    outcome = run("plan", "--recipe", "onnx-cpu", "--config", str(file), "--text-only", *LONG, "--json")
    assert outcome.code == 0, outcome.err
    plan = json.loads(outcome.out)
    assert plan["parameters"] == parameters
    spec = find_family(text_part(Config(values)), text_only=True).decoder_spec(text_part(Config(values)))
    cached = [token_bytes(layer.attention) for layer in spec.layers]
    assert plan["kv_bytes_per_layer"] == [
        slots * size for slots, size in zip(plan["slots_per_layer"], cached, strict=True)
    ]
    assert 4.4 < 8 * plan["weight_bytes"] / parameters < 6.0
    assert plan["device_memory_bytes"] > plan["weight_bytes"] + plan["kv_bytes_total"]


def test_a_config_and_a_folder_are_not_both_a_model(tmp_path: Path, run: Run) -> None:
    outcome = run("plan", "--recipe", "onnx-cpu", "--config", str(tmp_path), "--model", str(tmp_path))
    assert outcome.code == 2
    assert "--config and --model" in outcome.err


def test_a_missing_config_is_named(tmp_path: Path, run: Run) -> None:
    outcome = run("plan", "--recipe", "onnx-cpu", "--config", str(tmp_path / "config.json"))
    assert outcome.code == 2
    assert f"{tmp_path / 'config.json'}: not found" in outcome.err
