"""The attention operator against the oracle's codec and cache: every path of this machine, every codec, rings and sinks."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("executorch", reason="the executorch extra is not installed")

from kernel_calls import KernelLayer, address, kernel_library

from exporter.decoder.cache import LayerCache
from exporter.decoder.spec import AttentionSpec
from exporter.decoder.torch_ops import TorchOps
from exporter.decoder.weight_names import sinks_name
from exporter.errors import ToolchainMissing
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.kv_codec import ChannelConstants, KvCodec, LayerKvConstants
from exporter.targets.executorch.kernels import build
from tests.unit.helpers import TinyModel, normal, random_weights

PER_TOKEN = KvScaling.PER_TOKEN
CODECS = {
    "int8": KvFormat(8, PER_TOKEN),
    "int8-zero": KvFormat(8, PER_TOKEN, zero_point=True),
    "int4": KvFormat(4, PER_TOKEN),
    "int4-zero": KvFormat(4, PER_TOKEN, zero_point=True),
    "int4-zero-rotated": KvFormat(4, PER_TOKEN, zero_point=True, rotation=True),
}
RINGS = {
    "full": LayerCache(400),
    "ring": LayerCache(64, 40),
    "sinks": LayerCache(64, 40, 3),
}
ATTENTION = AttentionSpec(8, 2, 32, 0.2, None)
HEADS = {
    "grouped": ATTENTION,
    "one-query-per-key": replace(ATTENTION, query_heads=3, kv_heads=3),
    "many-queries": replace(ATTENTION, query_heads=11, kv_heads=1, head_dim=64),
    "wide": replace(ATTENTION, head_dim=256),
    "wider-than-32-bit-sums": replace(ATTENTION, query_heads=2, kv_heads=1, head_dim=576),
    "capped": replace(ATTENTION, score_cap=2.0),
    "sloped": replace(ATTENTION, distance_slopes=tuple(0.5**i for i in range(8))),
    "learned-sinks": replace(ATTENTION, learned_sinks=True),
    "narrow": replace(ATTENTION, head_dim=8),
}
CHUNKS = (17, 1, 1, 24, 1, 24, 24, 1, 24, 24, 24, 3)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return kernel_library()


def paths(library: ctypes.CDLL) -> list[str]:
    fastest = library.slm_fastest_path().decode()
    return ["portable", *(["avx2"] if fastest == "avx512" else []), *([fastest] if fastest != "portable" else [])]


def calibrated(attention: AttentionSpec) -> LayerKvConstants:
    shape = attention.kv_heads, attention.head_dim
    sides = [ChannelConstants(0.3 * normal(seed, *shape), normal(seed + 1, *shape).abs() + 0.5) for seed in (1, 3)]
    return LayerKvConstants(*sides)


def learned_sinks(attention: AttentionSpec) -> torch.Tensor:
    """From what takes nothing to what takes nearly all: scores are a few units wide."""
    return torch.linspace(-40.0, 8.0, attention.query_heads)


def oracle(attention: AttentionSpec, ring: LayerCache, kv_format: KvFormat, constants: LayerKvConstants) -> TorchOps:
    spec = TinyModel(windows=(None,)).spec()
    weights = random_weights(spec)
    weights.vectors[sinks_name(0)] = learned_sinks(attention)
    spec = replace(spec, layers=(replace(spec.layers[0], attention=attention),))
    return TorchOps(spec, weights, (ring,), kv_format, (constants,))


def differences(
    library: ctypes.CDLL,
    path: str,
    attention: AttentionSpec,
    ring: LayerCache,
    kv_format: KvFormat,
    fine: bool = False,
) -> tuple:
    """Largest relative difference of what was attended, and stored rows of both: codes and scales."""
    constants = calibrated(attention)
    reference, layer = (
        oracle(attention, ring, kv_format, constants),
        KernelLayer(library, path, attention, ring, kv_format, constants, fine),
    )
    layer.learned = learned_sinks(attention).numpy() if attention.learned_sinks else None
    worst = 0.0
    for seed, count in enumerate(CHUNKS):
        query = normal(10 * seed, count, attention.query_heads, attention.head_dim)
        key, value = (normal(10 * seed + i, count, attention.kv_heads, attention.head_dim) for i in (1, 2))
        wanted = reference.attention(0, attention, query, key, value)
        found = layer.attend(query, key, value)
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max()))
    return worst, reference.caches[0], layer


@pytest.mark.parametrize("ring", RINGS.values(), ids=RINGS)
@pytest.mark.parametrize("kv_format", CODECS.values(), ids=CODECS)
def test_every_path_attends_as_the_oracle_does(library: ctypes.CDLL, kv_format: KvFormat, ring: LayerCache) -> None:
    for path in paths(library):
        worst, _, _ = differences(library, path, ATTENTION, ring, kv_format)
        assert worst < 1e-3, path


@pytest.mark.parametrize("attention", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("bits", [8, 4])
def test_every_shape_of_heads(library: ctypes.CDLL, attention: AttentionSpec, bits: int) -> None:
    for path in paths(library) if attention.head_dim % 16 == 0 else ["portable"]:
        worst, _, _ = differences(library, path, attention, RINGS["sinks"], KvFormat(bits, PER_TOKEN, zero_point=True))
        assert worst < 1e-3, path


@pytest.mark.parametrize("kv_format", CODECS.values(), ids=CODECS)
def test_fine_attention_is_as_exact_as_floats(library: ctypes.CDLL, kv_format: KvFormat) -> None:
    """Codes that fall otherwise than the oracle's are no matter of attention, so tokens are compared whose keys and values it stored."""
    constants = calibrated(ATTENTION)
    for path in paths(library):
        reference = oracle(ATTENTION, RINGS["full"], kv_format, constants)
        layers = [KernelLayer(library, path, ATTENTION, RINGS["full"], kv_format, constants, fine) for fine in (0, 1)]
        chunk = [normal(i, 60, heads, ATTENTION.head_dim).round(decimals=1) for i, heads in enumerate((8, 2, 2))]
        wanted = reference.attention(0, ATTENTION, *chunk)
        plain, fine = (float((layer.attend(*chunk) - wanted).abs().max() / wanted.abs().max()) for layer in layers)
        assert fine < 3e-6 < plain, path


@pytest.mark.parametrize("kv_format", CODECS.values(), ids=CODECS)
def test_what_is_stored_is_what_the_codec_stores(library: ctypes.CDLL, kv_format: KvFormat) -> None:
    _, cache, layer = differences(library, "portable", ATTENTION, RINGS["ring"], kv_format)
    assert cache._keys is not None and cache._values is not None
    for side, (codes, rows) in enumerate(zip(layer.codes(), (cache._keys, cache._values), strict=True)):
        heads = slice(side * ATTENTION.kv_heads, (side + 1) * ATTENTION.kv_heads)
        assert rows.scale is not None
        same_scales = (rows.scale.numpy() == layer.scales[heads].T).mean()
        assert same_scales > (0.99 if kv_format.rotation else 0.999)
        plain = KvCodec(replace(kv_format, zero_point=True), cache.key.constants)._unpack(rows.codes).numpy()
        differs = np.abs(codes.astype(int) - plain.astype(int))
        assert differs.max() <= 1
        assert (differs != 0).mean() < 1e-3


def test_the_same_integers_come_of_every_path(library: ctypes.CDLL) -> None:
    """Products are exact: paths may differ in the last bits of the softmax only, not in what they multiply."""
    found = [differences(library, path, ATTENTION, RINGS["sinks"], CODECS["int4-zero"])[2] for path in paths(library)]
    query, key, value = normal(7, 4, 8, 32), normal(8, 4, 2, 32), normal(9, 4, 2, 32)
    first, *others = [layer.attend(query, key, value) for layer in found]
    for other in others:
        assert torch.equal(first, other)


def test_silu_of_every_path(library: ctypes.CDLL) -> None:
    given = torch.cat([20 * normal(1, 1003), torch.tensor([0.0, -0.0, 86.0, -86.0, 1e4, -1e4])])
    wanted, found = torch.nn.functional.silu(given), []
    for path in paths(library):
        out = torch.empty_like(given)
        assert library.slm_silu(path.encode(), address(given), ctypes.c_int64(given.numel()), address(out))
        found.append(out)
    torch.testing.assert_close(found[0], wanted, rtol=1e-6, atol=1e-30)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_without_a_compiler_the_error_names_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolchainMissing, match=r"C\+\+ compiler") as caught:
        build.operators_library()
    assert "executorch.operators=plain" in caught.value.next_step


@pytest.mark.parametrize("kv_format", [CODECS["int8-zero"], CODECS["int4"]], ids=["int8-zero", "int4"])
def test_caches_longer_than_what_32_bits_add_up(library: ctypes.CDLL, kv_format: KvFormat) -> None:
    """Sums over tokens are exact in blocks of 512, which are added up as floats."""
    attention, ring = replace(ATTENTION, query_heads=2, kv_heads=1, head_dim=16), LayerCache(1600)
    constants = calibrated(attention)
    reference = oracle(attention, ring, kv_format, constants)
    layers = [KernelLayer(library, path, attention, ring, kv_format, constants) for path in paths(library)]
    for seed, count in enumerate((600, 1, 512, 24)):
        chunk = [normal(5 * seed + i, count, heads, attention.head_dim) for i, heads in enumerate((2, 1, 1))]
        wanted = reference.attention(0, attention, *chunk)
        found = [layer.attend(*chunk) for layer in layers]
        assert float((found[0] - wanted).abs().max() / wanted.abs().max()) < 1e-3
        assert all(torch.equal(found[0], other) for other in found[1:])
