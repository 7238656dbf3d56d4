"""Checkpoints with experts in MXFP4: the numbers and the logits that transformers gets out of the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expert_cases import gpt_oss
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from random_checkpoint import (
    BREAKAGE,
    CHUNKS,
    PREFILL,
    STEPS,
    TOLERANCE,
    decoder_logits,
    edit_config,
    largest_error,
    random_tokens,
    reference_logits,
    save_random_checkpoint,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Mxfp4Config, PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from exporter.checkpoint.checkpoint import Checkpoint, open_checkpoint
from exporter.checkpoint.family import CONFIG_FILE
from exporter.checkpoint.mxfp4 import BLOCK_BYTES, unpack
from exporter.checkpoint.tensors import SINGLE_FILE
from exporter.decoder.weight_names import decoder_weights
from exporter.errors import CheckpointError

WIDTHS = {"hidden_size": 64, "intermediate_size": 96}
"""Two blocks and three blocks per row."""
PACKED = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_numbers_are_those_of_transformers(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 3)))
    blocks = torch.from_numpy(data.draw(arrays("uint8", (*shape, BLOCK_BYTES))))
    scales = torch.from_numpy(data.draw(arrays("uint8", shape, elements=st.integers(1, 252))))
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(unpack(blocks, scales), theirs.transpose(1, 2))


def packed_checkpoint(folder: Path) -> Path:
    """gpt-oss as it is published: experts are blocks and scales, the rest is bfloat16."""
    save_random_checkpoint(folder, gpt_oss(**WIDTHS))
    random, written = torch.Generator().manual_seed(7), {}
    for name, tensor in load_file(folder / SINGLE_FILE).items():
        if not name.endswith(PACKED):
            written[name] = tensor.bfloat16()
            continue
        count, columns, rows = tensor.shape
        shape = (count, rows, columns // 32)
        written[f"{name}_blocks"] = torch.randint(256, (*shape, BLOCK_BYTES), dtype=torch.uint8, generator=random)
        written[f"{name}_scales"] = torch.randint(121, 125, shape, generator=random).byte()
    save_file(written, folder / SINGLE_FILE, {"format": "pt"})
    edit_config(folder, quantization_config={"quant_method": "mxfp4"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed_checkpoint(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedModel:
    settings = Mxfp4Config(dequantize=True)
    loading = {"dtype": torch.float32, "attn_implementation": "eager", "quantization_config": settings}
    return AutoModelForCausalLM.from_pretrained(folder, **loading).eval()


def copy_config(folder: Path, to: Path) -> None:
    (to / CONFIG_FILE).write_bytes((folder / CONFIG_FILE).read_bytes())


def logits(checkpoint: Checkpoint, token_ids: torch.Tensor) -> torch.Tensor:
    return decoder_logits(checkpoint.spec, checkpoint, token_ids, CHUNKS)


def test_a_packed_checkpoint_computes_the_logits_of_transformers(folder: Path, theirs: PreTrainedModel) -> None:
    token_ids = random_tokens(PREFILL + STEPS)
    checkpoint, expected = open_checkpoint(folder), reference_logits(theirs, token_ids)
    assert largest_error(logits(checkpoint, token_ids), expected) < TOLERANCE
    assert largest_error(expected.roll(1, 0), expected) > BREAKAGE


def test_a_packed_checkpoint_has_the_weights_of_one_with_floats(
    folder: Path, theirs: PreTrainedModel, tmp_path: Path
) -> None:
    """transformers would save these floats under the names of the blocks, and not read them again."""
    written = {name: tensor.bfloat16().contiguous() for name, tensor in theirs.state_dict().items()}
    save_file(written, tmp_path / SINGLE_FILE)
    copy_config(folder, tmp_path)
    edit_config(tmp_path, ("quantization_config",))
    packed, floats = open_checkpoint(folder), open_checkpoint(tmp_path)
    for weight in decoder_weights(packed.spec):
        assert torch.equal(packed.weight(weight.name), floats.weight(weight.name)), weight.name


def test_a_missing_tensor_of_a_packed_checkpoint_is_a_missing_shard(folder: Path, tmp_path: Path) -> None:
    lost = "model.layers.1.mlp.experts.down_proj_blocks"
    tensors = load_file(folder / SINGLE_FILE)
    del tensors[lost]
    save_file(tensors, tmp_path / SINGLE_FILE)
    copy_config(folder, tmp_path)
    with pytest.raises(CheckpointError, match="copy all shards") as caught:
        open_checkpoint(tmp_path)
    assert lost.removesuffix("_blocks") in str(caught.value)
