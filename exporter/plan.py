"""What an export will cost and whether it can be done: refusals, bytes, memory, bandwidth floor. Reads no weight."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from exporter.checkpoint.family import CONFIG_FILE, read_spec_file
from exporter.decoder.cache import CacheSettings, LayerCache, cache_layout
from exporter.decoder.spec import DecoderSpec, ExpertsSpec
from exporter.decoder.weight_names import (
    EMBEDDING,
    WeightKind,
    decoder_weights,
    head_name,
    is_routed_matrix,
    layer_weights,
    parameter_count,
)
from exporter.errors import PlanRefused
from exporter.host_memory import host_memory_bytes
from exporter.quantize.formats import KvFormat, WeightSettings
from exporter.recipe import SMALLEST_WINDOW, Recipe
from exporter.targets.base import Obtained, Refusal, Target, TiedStorage, find_target

STATE_COPIES = 2
"""A step reads the states of the one before it and writes its own beside them."""


@dataclass(frozen=True)
class Plan:
    """Estimates of one export. All sizes in bytes."""

    family: str
    parameters: int
    context: int
    weight_bytes: int
    embedding_bytes: int
    tied: TiedStorage
    kv_bits: int
    kv_bytes_per_token: int
    kv_bytes_per_layer: tuple[int, ...]
    slots_per_layer: tuple[int, ...]
    state_bytes_per_layer: tuple[int, ...]
    device_memory_bytes: int
    host_memory_bytes: int
    bytes_read_per_token: int
    floor_ms_per_token: float
    memory_bandwidth_gb_s: float
    remarks: tuple[str, ...]

    @property
    def kv_bytes_total(self) -> int:
        return sum(self.kv_bytes_per_layer)

    @property
    def state_bytes_total(self) -> int:
        """What recurrent layers carry from token to token, whatever the context."""
        return sum(self.state_bytes_per_layer)

    def to_json(self) -> dict[str, Any]:
        totals = {"kv_bytes_total": self.kv_bytes_total, "state_bytes_total": self.state_bytes_total}
        return {**asdict(self), **totals, "obtained": Obtained.ESTIMATED}


def weight_settings(recipe: Recipe) -> WeightSettings:
    weights = recipe.weights
    return WeightSettings(
        weights.method,
        weights.group_size,
        weights.scale_format,
        weights.embedding_bits,
        weights.head_bits,
        weights.damping,
        weights.palette_rows,
    )


def cache_settings(spec: DecoderSpec, recipe: Recipe) -> CacheSettings:
    """The recipe's cache, cut to the model's context limit."""
    context = min(recipe.cache.context, spec.context_limit)
    return CacheSettings(context, min(recipe.cache.chunk, context), recipe.cache.window, recipe.cache.sinks)


def recipe_layout(spec: DecoderSpec, recipe: Recipe, target: Target) -> tuple[LayerCache, ...]:
    """Slots of every layer on this target."""
    settings = cache_settings(spec, recipe)
    multiple, layers = min(target.slot_multiple(recipe), settings.context), cache_layout(spec, settings)
    return tuple(LayerCache(-(-layer.slots // multiple) * multiple, layer.window, layer.sinks) for layer in layers)


def check_refusals(spec: DecoderSpec, recipe: Recipe, target: Target) -> None:
    """Raises PlanRefused listing every reason."""
    refusals = [*target.refusals(spec, recipe), *_cache_refusals(spec, recipe), *_window_refusals(spec, recipe)]
    refusals += [*_wrap_refusals(spec, recipe, target), *_palette_refusals(spec, recipe, target)]
    if refusals:
        raise PlanRefused(
            "this combination cannot be exported: " + " | ".join(map(str, refusals)),
            "change the recipe with --set, or the model",
        )


def _cache_refusals(spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
    layout = cache_layout(spec, cache_settings(spec, recipe))
    if not recipe.cache.sinks or any(layer.window is not None for layer in layout):
        return []
    reason = "cache.sinks has no effect: in no layer do window and sinks leave out a token of the context"
    return [Refusal(reason, "cache.sinks=0 or a smaller cache.window")]


def _window_refusals(spec: DecoderSpec, recipe: Recipe) -> list[Refusal]:
    """Texts are cut into windows, which the cache or the model must hold whole."""
    verify, context, limit = recipe.verify, cache_settings(spec, recipe).context, spec.context_limit
    window = min(verify.window, context)
    found = []
    if verify.window > context:
        reason = f"verify.window {verify.window} does not fit into the context of {context} tokens"
        nearest = f"verify.window={max(context, SMALLEST_WINDOW)}"
        if context < SMALLEST_WINDOW:
            nearest = f"cache.context={SMALLEST_WINDOW}, {nearest}"
        found.append(Refusal(reason, nearest))
    if verify.decode_tokens >= window:
        reason = f"verify.decode_tokens {verify.decode_tokens} leaves nothing of a window of {window} tokens to prefill"
        found.append(Refusal(reason, f"verify.decode_tokens={window - 1}"))
    if recipe.calibration.window > limit:
        reason = f"calibration.window {recipe.calibration.window} exceeds the model's limit of {limit} tokens"
        found.append(Refusal(reason, f"calibration.window={limit}"))
    if recipe.calibration.activation_tokens > recipe.calibration.tokens:
        reason = f"calibration.activation_tokens {recipe.calibration.activation_tokens} are part of calibration.tokens"
        found.append(Refusal(reason, f"calibration.activation_tokens={recipe.calibration.tokens}"))
    return found


def _palette_refusals(spec: DecoderSpec, recipe: Recipe, target: Target) -> list[Refusal]:
    rows, settings = recipe.weights.palette_rows, weight_settings(recipe)
    if rows and not target.holds_palettes:
        reason = f"weights.palette_rows {rows}: {target.runtime} multiplies by scaled codes, not by palettes"
        return [Refusal(reason, "weights.palette_rows=0")]
    formats = {
        weight: settings.table_format(weight.name, spec)
        if weight.kind is WeightKind.TABLE
        else settings.matrix_format()
        for weight in decoder_weights(spec)
        if weight.kind is not WeightKind.VECTOR
    }
    counts = [weight.shape[0] for weight, chosen in formats.items() if chosen.palette_rows]
    if not counts or not math.gcd(*counts) % rows:
        return []
    reason = f"weights.palette_rows {rows} does not divide the rows of every matrix"
    return [Refusal(reason, f"weights.palette_rows={math.gcd(rows, *counts)}")]


def _wrap_refusals(spec: DecoderSpec, recipe: Recipe, target: Target) -> list[Refusal]:
    """A ring that verification never wraps is not proven."""
    context = cache_settings(spec, recipe).context
    rings = [layer.slots for layer in recipe_layout(spec, recipe, target) if layer.slots < context]
    if recipe.verify.window > max(rings, default=0) or recipe.verify.window > context:
        return []
    reason = f"verify.window {recipe.verify.window} never wraps a cache of {max(rings)} slots"
    return [Refusal(reason, f"verify.window={max(rings) + 1}")]


def make_plan(spec: DecoderSpec, recipe: Recipe, target: Target) -> Plan:
    """Sizes and floor of an export that passed `check_refusals`."""
    layout, kv_format = recipe_layout(spec, recipe, target), target.kv_format(recipe)
    tied = target.tied_storage(spec, recipe)
    settings = replace(weight_settings(recipe), scale_format=target.stored_scales(recipe.weights.scale_format))
    matrices, tables = _weight_bytes(spec, settings)
    vectors = 4 * sum(weight.count for weight in decoder_weights(spec) if weight.kind is WeightKind.VECTOR)
    per_layer = tuple(layer.slots * _token_bytes(spec, index, kv_format) for index, layer in enumerate(layout))
    states = tuple(sum(target.state_bytes(state) for state in layer.states) for layer in spec.layers)
    head_bytes = tables[head_name(spec)]
    stored = matrices + vectors + sum(tables.values()) + (0 if tied.stored_once else tied.extra_bytes)
    read = matrices + vectors + head_bytes + sum(per_layer) + sum(states) - _unread_bytes(spec, settings)
    return Plan(
        spec.family,
        parameter_count(spec),
        cache_settings(spec, recipe).context,
        stored,
        tables[EMBEDDING],
        tied,
        kv_format.bits,
        sum(_token_bytes(spec, index, kv_format) for index in range(len(spec.layers))),
        per_layer,
        tuple(layer.slots for layer in layout),
        states,
        stored + sum(per_layer) + STATE_COPIES * sum(states) + _activation_bytes(spec, recipe),
        host_memory_bytes(spec, recipe, target, stored),
        read,
        read / (recipe.device.memory_bandwidth_gb_s * 1e9) * 1e3,
        recipe.device.memory_bandwidth_gb_s,
        tuple(target.remarks(spec, recipe)),
    )


def _weight_bytes(spec: DecoderSpec, settings: WeightSettings) -> tuple[int, dict[str, int]]:
    matrices, tables = 0, {}
    for weight in decoder_weights(spec):
        if weight.kind is WeightKind.MATRIX:
            matrices += settings.matrix_format().stored_bytes(*weight.shape)
        elif weight.kind is WeightKind.TABLE:
            tables[weight.name] = settings.table_format(weight.name, spec).stored_bytes(*weight.shape)
    return matrices, tables


def _unread_bytes(spec: DecoderSpec, settings: WeightSettings) -> int:
    """Matrices of the experts that a token is not sent to."""
    unread = 0
    for index, layer in enumerate(spec.layers):
        if isinstance(layer.feed_forward, ExpertsSpec):
            routing = layer.feed_forward.routing
            shapes = [weight.shape for weight in layer_weights(spec, index) if is_routed_matrix(weight)]
            whole = sum(settings.matrix_format().stored_bytes(*shape) for shape in shapes)
            unread += whole // routing.experts * (routing.experts - routing.chosen)
    return unread


def _token_bytes(spec: DecoderSpec, layer: int, kv_format: KvFormat) -> int:
    attention = spec.layers[layer].attention
    if attention is None:
        return 0
    sides = 1 if attention.latent else 2
    return sides * attention.kv_heads * kv_format.vector_bytes(attention.head_dim)


def _activation_bytes(spec: DecoderSpec, recipe: Recipe) -> int:
    """Largest set of live activations of a prefill chunk: hidden states, one block, and logits, 16 bit each."""
    blocks = [layer.feed_forward.hidden_size for layer in spec.layers if layer.feed_forward is not None]
    blocks += [layer.recurrence.input_size for layer in spec.layers if layer.recurrence is not None]
    widest = max(blocks, default=0)
    return 2 * cache_settings(spec, recipe).chunk * (3 * spec.hidden_size + 3 * widest + spec.vocab_size)


def plan_export(model: Path, recipe: Recipe, text_only: bool = False) -> Plan:
    """Refuses or estimates the export of a folder, from its `config.json` and the recipe alone. Raises PlanRefused or
    CheckpointError."""
    return plan_config(model / CONFIG_FILE, recipe, text_only)


def plan_config(config_file: Path, recipe: Recipe, text_only: bool = False) -> Plan:
    """The same for a `config.json` that may lie anywhere, without weights."""
    target = find_target(recipe.target.kind)
    spec = read_spec_file(config_file, text_only)
    check_refusals(spec, recipe, target)
    return make_plan(spec, recipe, target)
