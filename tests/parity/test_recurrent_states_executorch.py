"""Recurrent layers as ExecuTorch programs: they equal the oracle however a prompt is cut, and every conversation starts from zeros."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from executorch_artifact import FLOAT, lower_in_blocks, require_parity
from family_cases import Case
from quantized_case import CHUNK, quantized_case
from random_checkpoint import CHUNKS, CONTEXT, tiny_shape
from recurrent_cases import RECURRENT_CASES, bamba, falcon_h1, lfm2, mamba, zamba2
from transformers import PhiConfig

from device_tests import python_runner
from device_tests.process import LineStream
from device_tests.protocol import Event, Repetition, RunnerRequest, parse_line
from exporter.decoder.cache import CacheSettings, cache_layout
from exporter.quantize.formats import KvFormat, KvScaling, ScaleFormat
from exporter.quantize.quantized_checkpoint import QuantizedDecoder
from exporter.targets.executorch.kernels.build import find_compiler
from exporter.targets.executorch.xnnpack.driver import open_driver
from exporter.targets.executorch.xnnpack.lower import product_count
from exporter.targets.executorch.xnnpack.target import XnnpackTarget
from exporter.verify.greedy import greedy_reference
from tests.end_to_end.test_cpp_runner import built, executorch_folder
from tests.unit.helpers import random_tokens

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler on this machine")

DYNAMIC = {"activation_bits": 8}
WINDOW = CacheSettings(CONTEXT, CHUNK, window=9, sinks=3)
PAIR = {"num_hidden_layers": 2}

ROUNDED = {
    "falcon_h1": (Case(falcon_h1(mamba_d_ssm=64, mamba_d_head=8, intermediate_size=64, **PAIR), {}), 1e-3),
    "zamba2": (replace(RECURRENT_CASES["zamba2"], config=zamba2(adapter_rank=32, intermediate_size=64)), 1e-2),
    "phi": (Case(PhiConfig(**tiny_shape(intermediate_size=64, **PAIR)), {}), 1e-3),
}
"""Widths in whole groups; and how far INT8 activations may lead away from the oracle, which has none."""


MIXERS = {
    "short convolution": Case(lfm2(layer_types=["conv", "full_attention"], **PAIR), {}),
    "selective scan": Case(mamba(**PAIR), {}),
    "dual": Case(bamba(attn_layer_indices=[1], **PAIR), {}),
}
"""One kind of recurrence each, in a decoder as small as it can be, with attention in a window where its family has it."""


@dataclass(frozen=True)
class Lowered:
    decoder: QuantizedDecoder
    folder: Path
    outcome: dict[str, Any]


@torch.no_grad()
def lowered(case: Case, settings: dict[str, Any], folder: Path, cache: CacheSettings = WINDOW) -> Lowered:
    decoder = quantized_case(case, folder, KvFormat(8, KvScaling.PER_TOKEN), ScaleFormat.BF16)
    decoder = replace(decoder, layout=cache_layout(decoder.spec, cache))
    whole, outcome = lower_in_blocks(decoder, folder, settings)
    return Lowered(whole, folder, outcome)


@pytest.fixture(scope="module", params=MIXERS, ids=MIXERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    return lowered(MIXERS[request.param], FLOAT, tmp_path_factory.mktemp("mixer"))


@torch.no_grad()
def test_a_program_equals_the_oracle(program: Lowered) -> None:
    require_parity(program.decoder, program.folder, 1e-4)


def test_a_program_declares_the_states_and_slots_of_the_spec(program: Lowered) -> None:
    states = [state for layer in program.decoder.spec.layers for state in layer.states]
    assert program.outcome["state_bytes_total"] == sum(state.bytes for state in states) > 0
    assert program.outcome["slots_per_layer"] == tuple(ring.slots for ring in program.decoder.layout)
    assert open_driver(program.folder).kv_bytes() == program.outcome["kv_bytes_total"]


def test_no_cut_of_a_prompt_matters(program: Lowered) -> None:
    """Calls of one token, of odd numbers, of whole chunks; and chunks that are given again, longer each time, as `prefill` does."""
    token_ids, driver = random_tokens(program.decoder.spec, sum(CHUNKS), seed=5), open_driver(program.folder)
    whole = driver.prefill(token_ids)
    driver.reset()
    parts = np.split(np.array(token_ids), np.cumsum(CHUNKS)[:-1])
    ends = np.stack([driver.prompt(part.tolist()) for part in parts])
    np.testing.assert_allclose(ends, whole[np.cumsum(CHUNKS) - 1], rtol=1e-3, atol=1e-3)


def test_a_new_conversation_knows_nothing_of_the_last_one(program: Lowered) -> None:
    driver, token_ids = open_driver(program.folder), random_tokens(program.decoder.spec, 30, seed=2)
    fresh = driver.prompt(token_ids)
    for length in (1, 2, 20):
        driver.reset()
        driver.prompt(random_tokens(program.decoder.spec, length, seed=3))
        driver.reset()
        np.testing.assert_array_equal(driver.prompt(token_ids), fresh)


def test_a_conversation_cannot_begin_in_the_middle(program: Lowered) -> None:
    driver = open_driver(program.folder)
    driver.prompt([1, 2, 3])
    driver._length = 2
    with pytest.raises(RuntimeError, match="execut"):
        driver.decode(4)


def conversations(program: Lowered) -> tuple[RunnerRequest, list[tuple[int, tuple[int, ...]]]]:
    """Two prompts, thrice each, and what the oracle answers."""
    prompts = tuple(tuple(random_tokens(program.decoder.spec, count, seed=count)) for count in (9, 20))
    wanted = [tuple(greedy_reference(program.decoder, prompt, 6).token_ids) for prompt in prompts]
    request = RunnerRequest(str(program.folder), prompts, 6, 1, 2, (), driver=XnnpackTarget.driver)
    return request, [(number, wanted[number]) for number in (0, 0, 0, 1, 1, 1)]


def said(events: Iterable[Event | None]) -> list[tuple[int, tuple[int, ...]]]:
    return [(event.prompt, tuple(event.token_ids)) for event in events if isinstance(event, Repetition)]


@torch.no_grad()
def test_every_conversation_of_the_bench_gives_the_token_ids_of_the_oracle(program: Lowered) -> None:
    request, wanted = conversations(program)
    events: list[Event] = []
    python_runner.run(request, events.append)
    assert said(events) == wanted


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built([f"-DEXECUTORCH={executorch_folder()}"], tmp_path_factory)


@pytest.mark.slow
@torch.no_grad()
def test_so_does_every_conversation_of_the_cpp_runner(program: Lowered, runner: Path, tmp_path: Path) -> None:
    request, wanted = conversations(program)
    (tmp_path / "request.json").write_text(request.to_json(), encoding="utf-8")
    with closing(LineStream([str(runner / "executorch_runner"), str(tmp_path / "request.json")], 60)) as stream:
        assert said(parse_line(line) for line in stream.lines()) == wanted


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ROUNDED)
def test_products_of_one_input_are_one_delegate_where_activations_are_rounded(name: str, tmp_path: Path) -> None:
    """Attention beside a recurrence, adapters beside the block that layers share, and a feed-forward block beside attention."""
    case, most = ROUNDED[name]
    program = lowered(case, DYNAMIC, tmp_path)
    (delegates,) = program.outcome["delegation"]["delegates_per_method"].values()
    assert 0 < delegates < product_count(program.decoder.spec)
    require_parity(program.decoder, program.folder, most, 0.8)
