"""What families with mixtures of experts have in common: which layers have one, and how checkpoints name its weights."""

from __future__ import annotations

from exporter.checkpoint.config import Config
from exporter.checkpoint.dense import layer_count
from exporter.checkpoint.weight_map import LLAMA_WEIGHTS, Source, WeightMap
from exporter.decoder.experts import RouterScore, RoutingSpec
from exporter.decoder.spec import ExpertsSpec, FeedForwardSpec

EXPERTS = "layers.feed_forward.experts"
SHARED = "layers.feed_forward.shared"
SHARED_GATE = "layers.feed_forward.shared_gate"


def expert_weights(block: str, gate: str, up: str, down: str, router: str, shared: str | None = None) -> WeightMap:
    """Llama's naming, with tensors per expert below `block` ("model.layers.{}.mlp"); `shared` is the module of shared experts."""
    names = {"gate": gate, "up": up, "down": down}
    sources = {f"{EXPERTS}.{name}": Source(f"{block}.experts.{{}}.{module}.weight") for name, module in names.items()}
    if shared is not None:
        sources |= {f"{SHARED}.{name}": Source(f"{block}.{shared}.{name}_proj.weight") for name in names}
    return LLAMA_WEIGHTS.including({"layers.feed_forward.router": Source(f"{block}.{router}.weight")} | sources)


def qwen_weights(shared: str | None = None) -> WeightMap:
    """The naming that Qwen's and DeepSeek's mixtures share."""
    return expert_weights("model.layers.{}.mlp", "gate_proj", "up_proj", "down_proj", "gate", shared)


def read_routing(
    config: Config,
    count: str,
    chosen: int,
    score: RouterScore = RouterScore.SOFTMAX,
    renormalized: bool = False,
    bias: bool = False,
) -> RoutingSpec:
    """`count` is the field that says how many experts there are, `chosen` how many a token goes to unless the config says so."""
    experts, per_token = config.integer(count), config.integer("num_experts_per_tok", chosen)
    if per_token > experts:
        raise config.fault("num_experts_per_tok", f"{per_token} of {experts} experts")
    return RoutingSpec(experts, per_token, score, renormalized, bias)


def sparse_layers(config: Config, block: ExpertsSpec) -> tuple[ExpertsSpec | None, ...]:
    """Qwen's rule: every `decoder_sparse_step`-th layer but those in `mlp_only_layers`."""
    step, dense = config.integer("decoder_sparse_step", 1), config.get("mlp_only_layers", [])
    if not isinstance(dense, list):
        raise config.fault("mlp_only_layers", f"must list numbers of layers, not {dense!r}")
    return tuple(
        block if index not in dense and (index + 1) % step == 0 else None for index in range(layer_count(config))
    )


def gated_expert(config: Config, width: str, activation: str = "hidden_act") -> FeedForwardSpec:
    """A gated block without biases, of the width in this field."""
    return FeedForwardSpec(config.integer(width), config.activation(activation))
