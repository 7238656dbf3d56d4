"""The DecoderSpec agrees with optimum's normalized config, and absent fields mean what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from config_fields import MULTIPLIERS, SHAPE, unusual
from expert_configs import EXPERT_CONFIGS, EXPERT_OPTIONAL
from optimum.utils import NormalizedConfigManager
from random_checkpoint import edit_config
from recurrent_configs import RECURRENT_CONFIGS, RECURRENT_OPTIONAL
from transformers import (
    AutoConfig,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)

from exporter.checkpoint.config import Config
from exporter.checkpoint.family import find_family, read_spec
from exporter.checkpoint.weight_map import WeightMap
from exporter.decoder.spec import DecoderSpec
from exporter.errors import CheckpointError

UNUSUAL = unusual()
WINDOWED = {"use_sliding_window": True, "sliding_window": 77, "max_window_layers": 1}

GEMMA = UNUSUAL | {"tie_word_embeddings": False}
CAPPED = {
    "head_dim": 20,
    "hidden_activation": "silu",
    "attention_bias": True,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 7.0,
}
LOCAL = {
    **{name: value for name, value in GEMMA.items() if name != "rope_parameters"},
    **{name: value for name, value in CAPPED.items() if not name.endswith("capping")},
    "sliding_window_pattern": 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}

WITHOUT_NORM = unusual("rms_norm_eps")
TURNING = WITHOUT_NORM | {"tie_word_embeddings": False, "no_rope_layers": [0, 1, 0], "pad_token_id": 0}
PARALLEL = {"layer_norm_eps": 1e-3, "use_qkv_bias": True, "use_parallel_residual": True}

CONFIGS = {
    "llama": LlamaConfig(**SHAPE, **UNUSUAL, attention_bias=True, mlp_bias=True, head_dim=20),
    "mistral": MistralConfig(**SHAPE, **UNUSUAL, sliding_window=77, head_dim=20),
    "qwen2": Qwen2Config(**SHAPE, **UNUSUAL, **WINDOWED),
    "qwen3": Qwen3Config(**SHAPE, **UNUSUAL, **WINDOWED, attention_bias=True, head_dim=20),
    "granite": GraniteConfig(**SHAPE, **UNUSUAL, **MULTIPLIERS, attention_bias=True, mlp_bias=True),
    "gemma": GemmaConfig(**SHAPE, **GEMMA | {"hidden_act": "silu"}, attention_bias=True, head_dim=20),
    "gemma2": Gemma2Config(**SHAPE, **GEMMA, **CAPPED, sliding_window=77),
    "gemma3_text": Gemma3TextConfig(**SHAPE, **LOCAL, final_logit_softcapping=7.0, sliding_window=77),
}
CONFIGS |= {
    "phi3": Phi3Config(**SHAPE, **UNUSUAL, pad_token_id=0, sliding_window=77),
    "smollm3": SmolLM3Config(**SHAPE, **TURNING, attention_bias=True, mlp_bias=True),
    "olmo2": Olmo2Config(**SHAPE, **UNUSUAL, attention_bias=True),
    "phi": PhiConfig(**SHAPE, **unusual("rms_norm_eps"), layer_norm_eps=1e-3, qk_layernorm=True),
    "stablelm": StableLmConfig(**SHAPE, **unusual("rms_norm_eps"), **PARALLEL),
}
UNTIED = {"vocab_size": 101, "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False}
SCALES = {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "n_inner": 40}
BLOCKS = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "num_kv_heads": 4,
    "new_decoder_architecture": True,
    "num_ln_in_parallel_attn": 1,
    "bias": True,
    "alibi": True,
    "ffn_hidden_size": 40,
    "activation": "relu",
    "max_position_embeddings": 8192,
}
UNGROUPED = {name: value for name, value in SHAPE.items() if name != "num_key_value_heads"}
SEQUENTIAL = {"layer_norm_eps": 1e-3, "use_parallel_residual": False, "attention_bias": False}
CONFIGS |= {
    "gpt2": GPT2Config(**UNTIED, **SCALES, n_embd=96, n_layer=3, n_head=12, n_positions=77, activation_function="relu"),
    "gpt_neox": GPTNeoXConfig(**UNGROUPED, **unusual("rms_norm_eps"), **SEQUENTIAL),
    "falcon": FalconConfig(**UNTIED, **BLOCKS),
    "mpt": MptConfig(**UNTIED, d_model=96, n_layers=3, n_heads=12, max_seq_len=77, attn_config={"softmax_scale": 0.5}),
    "bloom": BloomConfig(**UNTIED, hidden_size=96, n_layer=3, n_head=12, seq_length=77),
}
CONFIGS |= EXPERT_CONFIGS | RECURRENT_CONFIGS

OPTIONAL = (
    EXPERT_OPTIONAL
    | RECURRENT_OPTIONAL
    | {
        "llama": (*UNUSUAL, "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias"),
        "mistral": (*UNUSUAL, "num_key_value_heads", "head_dim", "sliding_window"),
        "qwen2": (*UNUSUAL, *WINDOWED, "num_key_value_heads"),
        "qwen3": (*UNUSUAL, *WINDOWED, "num_key_value_heads", "head_dim", "attention_bias"),
        "granite": (*UNUSUAL, *MULTIPLIERS, "num_key_value_heads", "attention_bias", "mlp_bias"),
        "gemma": (*GEMMA, "num_key_value_heads", "attention_bias", "head_dim"),
        "gemma2": (*(GEMMA.keys() - {"hidden_act"}), *CAPPED, "sliding_window"),
        "phi3": (*UNUSUAL, "num_key_value_heads", "sliding_window"),
        "smollm3": (*(TURNING.keys() - {"pad_token_id"}), "attention_bias", "mlp_bias"),
        "olmo2": (*UNUSUAL, "num_key_value_heads", "attention_bias"),
        "phi": (*WITHOUT_NORM, "layer_norm_eps", "qk_layernorm", "num_key_value_heads"),
        "stablelm": (*WITHOUT_NORM, *PARALLEL),
        "gpt2": (*UNTIED, *SCALES, "n_embd", "n_layer", "n_head", "n_positions", "activation_function"),
        "gpt_neox": (*(WITHOUT_NORM.keys() - {"hidden_act"}), *SEQUENTIAL),
        "falcon": (*UNTIED, *BLOCKS),
        "mpt": (*UNTIED, "d_model", "n_layers", "n_heads", "max_seq_len", "attn_config"),
        "bloom": (*UNTIED, "hidden_size", "n_layer", "n_head"),
        "gemma3_text": (*(LOCAL.keys() - {"hidden_act"}), "final_logit_softcapping", "sliding_window"),
    }
)

KNOWN_TO_OPTIMUM = {
    name for name in CONFIGS.keys() & NormalizedConfigManager._conf if hasattr(CONFIGS[name], "num_key_value_heads")
}

NULLABLE = [
    ("gemma2", "attn_logit_softcapping"),
    ("gemma2", "final_logit_softcapping"),
    ("gemma3_text", "final_logit_softcapping"),
    ("granite", "num_key_value_heads"),
    ("llama", "num_key_value_heads"),
    ("llama", "head_dim"),
    ("llama", "rope_parameters"),
    ("mistral", "head_dim"),
    ("mistral", "sliding_window"),
    ("qwen2", "num_key_value_heads"),
    ("qwen2", "layer_types"),
    ("qwen3", "num_key_value_heads"),
    ("qwen3", "layer_types"),
]


def save_config(folder: Path, config: PreTrainedConfig) -> Path:
    """Writes config.json without the `layer_types` that otherwise spell out what the other window fields mean."""
    config.save_pretrained(folder)
    if "linear_attention" not in (config.to_dict().get("layer_types") or ()):
        edit_config(folder, ["layer_types"])
    return folder


def described(folder: Path) -> tuple[DecoderSpec, WeightMap]:
    """All that a config decides."""
    config = Config.read(folder / "config.json")
    return read_spec(folder), find_family(config).weights(config)


def assert_agrees_with_optimum(folder: Path) -> None:
    spec, config = read_spec(folder), AutoConfig.from_pretrained(folder)
    normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    assert spec.family == config.model_type
    assert len(spec.layers) == normalized.num_layers
    assert {layer.attention.query_heads for layer in spec.layers} == {normalized.num_attention_heads}
    assert {layer.attention.kv_heads for layer in spec.layers} == {normalized.num_key_value_heads}
    assert spec.hidden_size == normalized.hidden_size
    assert spec.vocab_size == normalized.vocab_size


@pytest.mark.parametrize("family", sorted(KNOWN_TO_OPTIMUM))
def test_spec_agrees_with_optimum(tmp_path: Path, family: str) -> None:
    assert len(set(SHAPE.values())) == len(SHAPE)
    assert_agrees_with_optimum(save_config(tmp_path, CONFIGS[family]))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_heads_without_groups_agree_with_optimum(tmp_path: Path, family: str) -> None:
    folder = save_config(tmp_path, CONFIGS[family])
    edit_config(folder, num_key_value_heads=None)
    assert_agrees_with_optimum(folder)
    assert read_spec(folder).layers[0].attention.group == 1


@pytest.mark.parametrize("name", ["qwen3-swa-5m-tinystories", "stories260K"])
def test_trained_checkpoint_agrees_with_optimum(shared_models: Path, name: str) -> None:
    assert_agrees_with_optimum(shared_models / name)


def test_example_checkpoint_agrees_with_optimum(example_model: Path) -> None:
    assert_agrees_with_optimum(example_model)


def spelled_out(folder: Path) -> Path:
    """A second folder, whose config.json transformers wrote after reading the first: every default is explicit."""
    AutoConfig.from_pretrained(folder).save_pretrained(folder / "spelled_out")
    return folder / "spelled_out"


@pytest.mark.parametrize(("family", "field"), [(name, field) for name, fields in OPTIONAL.items() for field in fields])
def test_absent_field_is_refused_or_takes_the_default_of_transformers(tmp_path: Path, family: str, field: str) -> None:
    folder = save_config(tmp_path, CONFIGS[family])
    complete = described(folder)
    assert field in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    edit_config(folder, [field])
    try:
        found = described(folder)
    except CheckpointError:
        return
    assert found == described(spelled_out(folder))
    assert found != complete, "the default equals the value that was removed, so that the test shows nothing"


@pytest.mark.parametrize(("family", "field"), NULLABLE)
def test_null_field_means_what_transformers_makes_of_it(tmp_path: Path, family: str, field: str) -> None:
    folder = save_config(tmp_path, CONFIGS[family])
    edit_config(folder, **{field: None})
    assert read_spec(folder) == read_spec(spelled_out(folder))
