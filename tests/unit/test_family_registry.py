"""Families as data: published members have their published size, and what is no decoder of text is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from exporter.checkpoint.config import Config
from exporter.checkpoint.family import all_families, find_family
from exporter.decoder.weight_names import decoder_weights, parameter_count
from exporter.errors import CheckpointError
from exporter.support import support_matrix

every_family = pytest.mark.parametrize("name", all_families().names())


@every_family
def test_the_published_member_has_its_published_number_of_parameters(name: str) -> None:
    family = all_families().get(name)
    assert parameter_count(family.published_spec()) == family.published.parameters


@every_family
def test_every_weight_has_a_tensor_and_no_two_share_rows(name: str) -> None:
    family = all_families().get(name)
    weights = family.weights(Config(family.published.config))
    sources = [weights.source(weight.name) for weight in decoder_weights(family.published_spec())]
    places = [(source.tensor, source.rows, source.member) for source in sources]
    assert len(set(places)) == len(places)


@every_family
def test_a_family_is_named_as_its_model_type(name: str) -> None:
    family = all_families().get(name)
    assert family.model_type == name == family.published_spec().family


ENCODER = "has an encoder; only decoders of text are exported"
NO_DECODERS: dict[str, tuple[dict[str, Any], str]] = {
    "bert": ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, ENCODER),
    "bare encoder": ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}, ENCODER),
    "t5": ({"model_type": "t5", "is_encoder_decoder": True}, ENCODER),
    "classifier": ({"model_type": "electra", "architectures": ["ElectraForSequenceClassification"]}, ENCODER),
    "vision": (
        {"model_type": "llava", "vision_config": {}, "text_config": {"model_type": "llama"}},
        "has vision towers; only decoders of text are exported; its text decoder is a llama",
    ),
    "several": (
        {"model_type": "gemma3n", "vision_config": {}, "audio_config": {}, "text_config": {"model_type": "unknown"}},
        "has vision and audio towers; only decoders of text are exported; did you mean",
    ),
    "unknown": ({"model_type": "llama5"}, "is not supported; did you mean 'llama'?"),
    "odd architectures": ({"model_type": "llama5", "architectures": "LlamaForMaskedLM"}, "is not supported"),
}


@pytest.mark.parametrize(("config", "problem"), NO_DECODERS.values(), ids=NO_DECODERS)
def test_what_is_no_supported_decoder_is_refused_with_the_reason(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_family(Config(config, "folder/config.json"))
    message = str(caught.value)
    assert message.startswith(f"folder/config.json: model_type: '{config['model_type']}' {problem}")
    assert all(name in message for name in all_families())


def test_the_matrix_covers_every_family_and_says_both_yes_and_no() -> None:
    matrix = support_matrix()
    assert {entry.family for entry in matrix} == set(all_families().names())
    by_recipe = {entry.recipe: [] for entry in matrix}
    for entry in matrix:
        by_recipe[entry.recipe].append(not entry.refusals)
    assert all(by_recipe["onnx-cpu"])
    assert {True, False} == set(by_recipe["android-npu"])
