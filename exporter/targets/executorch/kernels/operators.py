"""The operators' schemas, and what torch.export must know of them: shapes alone. The library registers what they compute.

Both overloads of each must have an implementation for every device, or lowering finds none.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

CACHES = "Tensor(a!) keys, Tensor(b!) values, Tensor(c!) scales"
ATTENTION = (
    f"Tensor query, Tensor key, Tensor value, Tensor position, {CACHES}, Tensor constants, Tensor slopes, Tensor learned, int bits, "
    "int window, int sinks, bool zero_point, bool rotation, bool fine, float score_scale, float score_cap"
)
EXPERTS = (
    "Tensor value, Tensor router, Tensor router_bias, Tensor selection_bias, Tensor gate_up, Tensor gate_up_scales, "
    "Tensor gate_up_bias, Tensor down, Tensor down_scales, Tensor down_bias, int group_size, int chosen, bool sigmoid, "
    "bool renormalized, int groups, int chosen_groups, bool best_two, float slope, float limit, float up_offset, bool rounded"
)
STATE = "Tensor position, Tensor(a!) state, Tensor(b!) held"
SCANNED = f"Tensor value, Tensor step, Tensor entering, Tensor leaving, {STATE}"
SCHEMAS = {
    "attention": ATTENTION,
    "causal_convolution": f"Tensor value, {STATE}, Tensor weight, Tensor bias",
    "experts": EXPERTS,
    "linear": "Tensor value, Tensor codes, Tensor scales, int bits, int group_size",
    "rms_norm": "Tensor value, Tensor gain, float eps",
    "rotary": "Tensor value, Tensor cosine, Tensor sine",
    "selective_scan": f"{SCANNED}, Tensor decay, Tensor skip",
    "silu": "Tensor value",
    "state_space_dual": f"{SCANNED}, Tensor step_bias, Tensor decay, Tensor skip, float shortest_step",
}

_LIBRARY = torch.library.Library("slm", "DEF")


def _like_first(first: torch.Tensor, *rest: object, out: torch.Tensor | None = None) -> torch.Tensor:
    """The result has the shape of the first argument."""
    return torch.empty_like(first) if out is None else out


def _product(value: torch.Tensor, codes: torch.Tensor, *rest: object, out: torch.Tensor | None = None) -> torch.Tensor:
    """[S, in] and codes [out, bytes] -> [S, out]."""
    return value.new_empty(value.shape[0], codes.shape[0]) if out is None else out


for _name, _arguments in SCHEMAS.items():
    _LIBRARY.define(f"{_name}({_arguments}) -> Tensor")
    _LIBRARY.define(f"{_name}.out({_arguments}, *, Tensor(z!) out) -> Tensor(z!)")
    for _overload in (_name, f"{_name}.out"):
        _LIBRARY.impl(_overload, _product if _name == "linear" else _like_first, "CompositeExplicitAutograd")


def load_library(path: Path) -> None:
    """Registers the operators in this process. ExecuTorch's Python runtime must have been imported before."""
    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
