"""How much memory an export takes on the machine that exports: the largest process of its largest stage, by rule.

The rules have one term for whatever a stage keeps, and constants that were measured (benchmarks/README.md has what they said of exports
with a billion weights, and what those took).
"""

from __future__ import annotations

from exporter.decoder.memory import KEPT_BYTES
from exporter.decoder.spec import DecoderSpec
from exporter.decoder.weight_names import WeightKind, decoder_weights, parameter_count
from exporter.quantize.formats import RoundingMethod
from exporter.recipe import Recipe
from exporter.targets.base import Target

QUANTIZING_BYTES, LOWERING_BYTES, VERIFYING_BYTES = 400_000_000, 800_000_000, 950_000_000
"""Interpreter, libraries and blocks of rows of each stage."""
LIVE_ACTIVATIONS = 3
"""Hidden states and inner activations of all calibration tokens that live at the same time, each."""
COVARIANCES = 3
"""Of GPTQ, over the widest input: the covariance, its inverse and the factor of that."""


def host_memory_bytes(spec: DecoderSpec, recipe: Recipe, target: Target, stored_bytes: int) -> int:
    """`stored_bytes` are the quantized weights."""
    lowering = LOWERING_BYTES + target.lowering_bytes_per_weight * parameter_count(spec)
    return max(_quantizing(spec, recipe, stored_bytes), lowering, _verifying(spec, recipe, stored_bytes))


def _quantizing(spec: DecoderSpec, recipe: Recipe, stored_bytes: int) -> int:
    widths = [weight.shape[1] for weight in decoder_weights(spec) if weight.kind is WeightKind.MATRIX]
    widest = max(widths, default=spec.hidden_size)
    activations = 4 * recipe.calibration.tokens * LIVE_ACTIVATIONS * (spec.hidden_size + widest)
    covariances = COVARIANCES * 4 * widest**2 if recipe.weights.method is RoundingMethod.GPTQ else 0
    return QUANTIZING_BYTES + stored_bytes + activations + covariances


def _verifying(spec: DecoderSpec, recipe: Recipe, stored_bytes: int) -> int:
    """Logits of a window exist once as pieces and once as a whole."""
    logits = 2 * 4 * spec.vocab_size * recipe.verify.window
    return VERIFYING_BYTES + stored_bytes + min(KEPT_BYTES, 4 * parameter_count(spec)) + logits
