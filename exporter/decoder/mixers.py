"""The recurrent mixers, once, against `Ops`: what `forward.py` calls in place of attention or beside it."""

from __future__ import annotations

from exporter.decoder.ops import Ops, Tensor
from exporter.decoder.recurrence import Recurrence, SelectiveScan, ShortConvolution, StateSpaceDual
from exporter.decoder.spec import Activation, NormSpec


def mix_by_recurrence(ops: Ops[Tensor], mixer: Recurrence, index: int, value: Tensor) -> Tensor:
    """The mixer of layer `index`: [S, D] -> [S, D]."""
    projected = ops.linear(value, f"layers.{index}.recurrence.input", mixer.bias)
    if isinstance(mixer, ShortConvolution):
        return _short_convolution(ops, mixer, index, projected)
    if isinstance(mixer, SelectiveScan):
        return _selective_scan(ops, mixer, index, projected)
    return _state_space_dual(ops, mixer, index, projected)


def _short_convolution(ops: Ops[Tensor], mixer: ShortConvolution, index: int, projected: Tensor) -> Tensor:
    before, after, value = ops.split(projected, (mixer.convolution.channels,) * 3)
    convolved = ops.causal_convolution(index, mixer.convolution, ops.multiply(before, value))
    return ops.linear(ops.multiply(after, convolved), f"layers.{index}.recurrence.output", mixer.bias)


def _selective_scan(ops: Ops[Tensor], mixer: SelectiveScan, index: int, projected: Tensor) -> Tensor:
    prefix = f"layers.{index}.recurrence"
    value, gate = ops.split(projected, (mixer.channels, mixer.channels))
    value = ops.activation(ops.causal_convolution(index, mixer.convolution, value), Activation.SILU)
    parameters = ops.split(ops.linear(value, f"{prefix}.parameters", False), mixer.parameter_sizes)
    step, entering, leaving = (
        _parameter(ops, mixer, f"{prefix}.{name}_norm", part)
        for name, part in zip(("step", "input", "output"), parameters, strict=True)
    )
    steps = ops.linear(step, f"{prefix}.step", True)
    scanned = ops.selective_scan(index, mixer, value, steps, entering, leaving)
    return ops.linear(_gated(ops, scanned, gate), f"{prefix}.output", mixer.bias)


def _parameter(ops: Ops[Tensor], mixer: SelectiveScan, gain: str, value: Tensor) -> Tensor:
    eps = mixer.parameter_norm_eps
    return value if eps is None else ops.rms_norm(value, gain, NormSpec(eps))


def _state_space_dual(ops: Ops[Tensor], mixer: StateSpaceDual, index: int, projected: Tensor) -> Tensor:
    gate, convolved, steps = ops.split(projected, mixer.input_sizes)
    convolved = ops.activation(ops.causal_convolution(index, mixer.convolution, convolved), Activation.SILU)
    value, entering, leaving = ops.split(convolved, mixer.convolved_sizes)
    scanned = ops.state_space_dual(index, mixer, value, steps, entering, leaving)
    gated = _gated_norm(ops, mixer, f"layers.{index}.recurrence.norm", scanned, gate)
    return ops.linear(gated, f"layers.{index}.recurrence.output", mixer.output_bias)


def _gated_norm(ops: Ops[Tensor], mixer: StateSpaceDual, gain: str, value: Tensor, gate: Tensor) -> Tensor:
    if mixer.norm_eps is None:
        return _gated(ops, value, gate)
    norm = NormSpec(mixer.norm_eps, groups=mixer.groups)
    if mixer.norm_before_gate:
        return _gated(ops, ops.rms_norm(value, gain, norm), gate)
    return ops.rms_norm(_gated(ops, value, gate), gain, norm)


def _gated(ops: Ops[Tensor], value: Tensor, gate: Tensor) -> Tensor:
    return ops.multiply(value, ops.activation(gate, Activation.SILU))
