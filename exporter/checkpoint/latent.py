"""DeepSeek's latent attention and its mixtures: what versions 2 and 3 of the family have in common."""

from __future__ import annotations

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import layer_count
from exporter.checkpoint.experts import EXPERTS, qwen_weights
from exporter.checkpoint.rotary import read_rotary, sharpening
from exporter.checkpoint.weight_map import Rows, Source, WeightMap
from exporter.decoder.experts import GroupLimit, GroupScore, RoutingSpec
from exporter.decoder.latent import LatentSpec
from exporter.decoder.spec import (
    AttentionSpec,
    DecoderSpec,
    ExpertsSpec,
    FeedForwardSpec,
    LayerSpec,
    NormSpec,
    RotarySpec,
)

USUAL_QUERY_RANK = 1536
ATTENTION = "model.layers.{}.self_attn"


def latent_decoder(config: Config, family: str, routing: RoutingSpec, mlp_bias: bool) -> DecoderSpec:
    """Latent attention in every layer, and mixtures with shared experts behind the first `first_k_dense_replace` ones."""
    norm, layers = NormSpec(config.number("rms_norm_eps", 1e-6)), layer_count(config)
    attention, dense = _attention(config), config.integer("first_k_dense_replace", 0, least=0)
    width, activation = config.integer("moe_intermediate_size"), config.activation()
    shared = FeedForwardSpec(width * config.integer("n_shared_experts"), activation, mlp_bias)
    mixture = ExpertsSpec(routing, FeedForwardSpec(width, activation), shared)
    plain = FeedForwardSpec(config.integer("intermediate_size"), activation, mlp_bias)
    blocks = [plain if index < dense else mixture for index in range(layers)]
    return DecoderSpec(
        family,
        config.integer("vocab_size"),
        config.integer("hidden_size"),
        config.integer("max_position_embeddings"),
        tuple(LayerSpec(norm, attention, norm, block) for block in blocks),
        norm,
        config.flag("tie_word_embeddings", False),
    )


def read_latent(config: Config) -> LatentSpec:
    return LatentSpec(
        config.integer("kv_lora_rank", 512),
        config.integer("qk_rope_head_dim", 64),
        config.integer("qk_nope_head_dim", 128),
        config.integer("v_head_dim", 128),
        config.optional_integer("q_lora_rank") if "q_lora_rank" in config.values else USUAL_QUERY_RANK,
    )


def _attention(config: Config) -> AttentionSpec:
    latent, bias = read_latent(config), config.flag("attention_bias", False)
    config.refuse("num_key_value_heads", config.integer("num_attention_heads"))
    rotary = read_rotary(config, latent.rotary)
    return AttentionSpec(
        config.integer("num_attention_heads"),
        1,
        latent.cached,
        (latent.plain + latent.rotary) ** -0.5 * _score_factor(config, rotary),
        rotary,
        query_key_value_bias=bias,
        output_bias=bias,
        latent=latent,
    )


def _score_factor(config: Config, rotary: RotarySpec) -> float:
    """What YaRN sharpens all channels by, on queries and on keys."""
    if rotary.scaling is None:
        return 1.0
    current = config.section("rope_parameters")
    parameters = current if current.values else config.section("rope_scaling")
    scale = parameters.number("mscale_all_dim", 0.0)
    return sharpening(rotary.scaling.factor, scale) ** 2 if scale else 1.0


def group_limit(config: Config, experts: int, score: GroupScore) -> GroupLimit | None:
    """None where all groups may serve."""
    groups = config.integer("n_group", 1)
    chosen = config.integer("topk_group", groups)
    if experts % groups or chosen > groups:
        raise config.fault("n_group", f"{groups} groups of {experts} experts, of which {chosen} are chosen")
    return None if chosen == groups else GroupLimit(groups, chosen, score)


def latent_weights(config: Config, interleaved: bool) -> WeightMap:
    """`interleaved`: rotated pairs are neighbours in the files; here a pair's halves lie half the channels apart."""
    latent, heads = read_latent(config), config.integer("num_attention_heads")
    turn = (*range(0, latent.rotary, 2), *range(1, latent.rotary, 2)) if interleaved else tuple(range(latent.rotary))
    plain = tuple(range(latent.plain))
    query = (*(latent.plain + channel for channel in turn), *plain)
    name = "q_proj" if latent.query_rank is None else "q_b_proj"
    compressed, expanded = Source(f"{ATTENTION}.kv_a_proj_with_mqa.weight"), f"{ATTENTION}.kv_b_proj.weight"
    per_head, both = latent.plain + latent.value, latent.rank + latent.rotary
    sources = {
        "queries": Source(f"{ATTENTION}.{name}.weight", order=query),
        "query_down": Source(f"{ATTENTION}.q_a_proj.weight"),
        "query_down_norm": Source(f"{ATTENTION}.q_a_layernorm.weight"),
        "latent": Source(compressed.tensor, Rows(0, latent.rank, both)),
        "latent_norm": Source(f"{ATTENTION}.kv_a_layernorm.weight"),
        "rotary_key": Source(compressed.tensor, Rows(latent.rank, latent.rotary, both), order=turn),
        "heads.absorb": Source(
            expanded, Rows(0, latent.plain, heads * per_head), rows_per_member=per_head, turned=True
        ),
        "heads.expand": Source(expanded, Rows(latent.plain, latent.value, heads * per_head), rows_per_member=per_head),
    }
    weights = qwen_weights("shared_experts").including(
        {f"layers.attention.{name}": source for name, source in sources.items()}
        | {"layers.feed_forward.selection_bias": Source("model.layers.{}.mlp.gate.e_score_correction_bias")}
    )
    return weights.changed([f"{EXPERTS}.down"], factor=config.number("routed_scaling_factor", 1.0))
