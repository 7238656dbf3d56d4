"""KV codecs: round trips within half a step, really packed bytes, constants that are identities in full precision."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import (
    TinyModel,
    calibrated_constants,
    decode_in_pieces,
    examples,
    normal,
    random_tokens,
    random_weights,
    watch_attention,
)
from hypothesis import given
from hypothesis import strategies as st

from exporter.decoder.cache import CacheSettings, cache_layout
from exporter.decoder.torch_ops import TorchOps
from exporter.quantize.formats import KvFormat, KvScaling
from exporter.quantize.kv_codec import ChannelConstants, EncodedRows, KvCodec, hadamard, pack_lanes, unpack_lanes

PER_TOKEN = [
    KvFormat(bits, KvScaling.PER_TOKEN, zero_point, rotation)
    for bits in (8, 4)
    for zero_point in (False, True)
    for rotation in (False, True)
] + [KvFormat(4, KvScaling.PER_TOKEN, zero_point, half_lanes=True) for zero_point in (False, True)]
STATIC = [
    KvFormat(bits, KvScaling.STATIC, rotation=rotation, per_channel=per_channel)
    for bits in (8, 4)
    for rotation in (False, True)
    for per_channel in (False, True)
]
FLOAT = [KvFormat(bits, KvScaling.NONE, rotation=rotation) for bits in (32, 16) for rotation in (False, True)]
HALF_ULP = 2.0**-11
"""Largest relative error of rounding to fp16."""
SMALLEST_HALF = 2.0**-24

seeds = st.integers(0, 2**31)
widths = st.sampled_from([1, 2, 8, 16, 64])
any_widths = st.sampled_from([1, 2, 3, 7, 8, 16, 20, 64])
magnitudes = st.floats(-5, 3).map(lambda exponent: 10.0**exponent)


def name_of(kv_format: KvFormat) -> str:
    flags = "".join(
        f"-{name}" for name in ("zero_point", "rotation", "per_channel", "half_lanes") if getattr(kv_format, name)
    )
    return f"{kv_format.bits}-{kv_format.scaling.value}{flags}"


def formats(*entries: KvFormat) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kv_format", entries, ids=name_of)


def random_constants(seed: int, kv_heads: int, head_dim: int, scale: float = 1.0, zero: int = 0) -> ChannelConstants:
    center = normal(seed, kv_heads, head_dim)
    return ChannelConstants(center, torch.exp(0.5 * normal(seed + 1, kv_heads, head_dim)), scale, zero)


def random_rows(seed: int, head_dim: int, magnitude: float, kv_heads: int = 2, tokens: int = 5) -> torch.Tensor:
    """Keys or values with an outlier channel, an offset and one all-zero vector."""
    rows = normal(seed, tokens, kv_heads, head_dim) + 0.5 * normal(seed + 1, 1, kv_heads, head_dim)
    rows[..., 0] *= 6.0
    rows[0, 0] = 0.0
    return rows * magnitude


def row_bytes(stored: EncodedRows) -> int:
    """Bytes of one vector of one head."""
    parts = [part for part in (stored.codes, stored.scale, stored.zero) if part is not None]
    tokens, kv_heads = stored.codes.shape[:2]
    return sum(part.nbytes for part in parts) // (tokens * kv_heads)


@formats(*PER_TOKEN, *STATIC, *FLOAT)
def test_stored_bytes_equal_vector_bytes(kv_format: KvFormat) -> None:
    for head_dim in (1, 2, 8, 64) if kv_format.rotation else (1, 2, 7, 8, 20, 64):
        stored = KvCodec(kv_format, ChannelConstants.identity(2, head_dim)).encode(random_rows(1, head_dim, 1.0))
        assert row_bytes(stored) == kv_format.vector_bytes(head_dim)


@given(codes=st.lists(st.integers(0, 15), min_size=1, max_size=40))
@examples(60)
def test_codes_in_fp16_lanes_come_back(codes: list[int]) -> None:
    packed = pack_lanes(torch.tensor([codes], dtype=torch.float32))
    assert packed.dtype is torch.float16
    assert packed.shape[-1] == math.ceil(len(codes) / 3)
    assert unpack_lanes(packed, len(codes))[0].tolist() == codes


@formats(*PER_TOKEN)
def test_float_scales_change_what_is_stored_by_rounding_alone(kv_format: KvFormat) -> None:
    rows = random_rows(3, 16, 1.0)
    codecs = [
        KvCodec(entry, ChannelConstants.identity(2, 16)) for entry in (kv_format, kv_format.without_half_rounding())
    ]
    rounded, exact = (codec.encode(rows) for codec in codecs)
    assert rounded.scale is not None and exact.scale is not None
    assert exact.scale.dtype is torch.float32
    live = rounded.scale.float().abs() > SMALLEST_HALF
    torch.testing.assert_close(rounded.scale.float()[live], exact.scale[live], rtol=HALF_ULP, atol=0)


@formats(*PER_TOKEN, *STATIC, *FLOAT)
def test_a_whole_cache_allocates_slots_times_vector_bytes(kv_format: KvFormat) -> None:
    model = TinyModel(windows=(None, 4))
    spec = model.spec()
    layout, weights = cache_layout(spec, CacheSettings(24, 4)), random_weights(spec)
    ops = TorchOps(spec, weights, layout, kv_format, calibrated_constants(spec, weights, kv_format))
    decode_in_pieces(ops, random_tokens(spec, 9), [4])
    for cache in ops.caches.values():
        expected = 2 * cache.layout.slots * model.kv_heads * kv_format.vector_bytes(model.head_dim)
        assert cache.stored_bytes() == expected


@formats(*[entry for entry in PER_TOKEN if not entry.zero_point])
@given(seed=seeds, width=widths, magnitude=magnitudes)
@examples(40)
def test_symmetric_codes_err_by_at_most_one_step_of_the_signed_peak(
    kv_format: KvFormat, seed: int, width: int, magnitude: float
) -> None:
    codec = KvCodec(kv_format, random_constants(seed, 2, width))
    rows = random_rows(seed, width, magnitude)
    prepared, stored = codec.prepare(rows), codec.encode(rows)
    levels = 2**kv_format.bits
    peak = prepared.abs().amax(-1, keepdim=True)
    step = peak / (levels // 2)
    assert stored.scale is not None
    assert bool((stored.scale != 0).all())
    rounding = (levels // 2) * (step * HALF_ULP + SMALLEST_HALF)
    error = (codec.decode(stored) - prepared).abs()
    assert bool((error <= step * 1.001 + rounding).all())
    at_peak = prepared.abs() == peak
    inner = (prepared.abs() < peak * (1 - 1.5 / (levels // 2))) | at_peak
    assert bool((error <= step * 0.501 + rounding)[inner].all())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_opposite_of_the_signed_peak_saturates_one_step_short(sign: float) -> None:
    codec = KvCodec(KvFormat(4, KvScaling.PER_TOKEN), ChannelConstants.identity(1, 4))
    step = 2.0**-3
    decoded = codec.decode(codec.encode(sign * torch.tensor([[[1.0, -1.0, 0.0, 0.5]]])))
    assert (sign * decoded).tolist() == [[[1.0, step - 1.0, 0.0, 0.5]]]


def test_int8_scales_are_positive_and_both_peaks_are_reached() -> None:
    codec = KvCodec(KvFormat(8, KvScaling.PER_TOKEN), ChannelConstants.identity(1, 4))
    encoded = codec.encode(torch.tensor([[[-127.0, 127.0, 0.0, 63.0]]]))
    assert encoded.scale is not None
    assert encoded.scale.tolist() == [[1.0]]
    assert codec.decode(encoded).tolist() == [[[-127.0, 127.0, 0.0, 63.0]]]


@formats(*[entry for entry in PER_TOKEN if entry.zero_point])
@given(seed=seeds, width=widths, magnitude=magnitudes)
@examples(40)
def test_codes_with_a_zero_point_err_by_at_most_half_a_step(
    kv_format: KvFormat, seed: int, width: int, magnitude: float
) -> None:
    codec = KvCodec(kv_format, random_constants(seed, 2, width))
    rows = random_rows(seed, width, magnitude)
    prepared = codec.prepare(rows)
    low, high = prepared.amin(-1, keepdim=True), prepared.amax(-1, keepdim=True)
    step = (high - low) / (2**kv_format.bits - 1)
    rounding = low.abs() * HALF_ULP + (high - low) * HALF_ULP + 2**kv_format.bits * SMALLEST_HALF
    error = (codec.decode(codec.encode(rows)) - prepared).abs()
    assert bool((error <= step * 0.501 + rounding).all())


@formats(*STATIC)
@given(seed=seeds, width=widths)
@examples(40)
def test_static_codes_err_by_at_most_half_a_step_inside_their_range(kv_format: KvFormat, seed: int, width: int) -> None:
    zero = 2 ** (kv_format.bits - 1) - 3
    codec = KvCodec(kv_format, random_constants(seed, 2, width, scale=0.05, zero=zero))
    rows = random_rows(seed, width, 0.3)
    prepared, decoded = codec.prepare(rows), codec.decode(codec.encode(rows))
    low, high = -zero * 0.05, (2**kv_format.bits - 1 - zero) * 0.05
    assert bool(((decoded - prepared.clamp(low, high)).abs() <= 0.05 * 0.501).all())


@formats(*[entry for entry in STATIC if not entry.rotation])
def test_static_codes_saturate_at_both_ends(kv_format: KvFormat) -> None:
    top, zero = 2**kv_format.bits - 1, 5
    codec = KvCodec(kv_format, ChannelConstants(torch.zeros(1, 4), torch.ones(1, 4), 0.5, zero))
    rows = torch.tensor([[[-1e4, 1e4, 0.0, 1.0]]])
    assert codec.decode(codec.encode(rows)).tolist() == [[[-zero * 0.5, (top - zero) * 0.5, 0.0, 1.0]]]


@formats(*[entry for entry in STATIC if not entry.rotation])
def test_static_calibration_covers_everything_it_saw(kv_format: KvFormat) -> None:
    spec = TinyModel(windows=(None, 4)).spec()
    weights = random_weights(spec)
    constants = calibrated_constants(spec, weights, kv_format)

    def check(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        for side, rows in ((constants[layer].key, key), (constants[layer].value, value)):
            codec = KvCodec(kv_format, side)
            error = (codec.decode(codec.encode(rows)) - codec.prepare(rows)).abs()
            assert float(error.max()) <= 0.501 * side.scale
            checked.append(layer)

    checked: list[int] = []
    watch_attention(spec, weights, check)
    assert checked == [0, 0, 1, 1]


@formats(*FLOAT)
def test_float_caches_keep_their_precision(kv_format: KvFormat) -> None:
    codec = KvCodec(kv_format, random_constants(3, 2, 16))
    rows = random_rows(3, 16, 1.0)
    error = (codec.decode(codec.encode(rows)) - codec.prepare(rows)).abs()
    limit = codec.prepare(rows).abs() * HALF_ULP + SMALLEST_HALF
    assert bool((error <= limit).all()) if kv_format.bits == 16 else not error.any()


def attention_output(codec_key: KvCodec, codec_value: KvCodec, rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Full attention of queries [S, K, R, Hd] over keys and values [C, K, Hd] through the codecs."""
    query, key, value = rows
    keys, values = codec_key.decode(codec_key.encode(key)), codec_value.decode(codec_value.encode(value))
    scores = torch.einsum("skrd,ckd->krsc", codec_key.prepare_query(query), keys) / math.sqrt(query.shape[-1])
    return codec_value.restore(torch.einsum("krsc,ckd->skrd", scores.softmax(-1), values))


@pytest.mark.parametrize("rotation", [False, True])
@given(seed=seeds, width=widths)
@examples(20)
def test_centring_balancing_and_rotation_do_not_change_attention(rotation: bool, seed: int, width: int) -> None:
    rows = normal(seed, 3, 2, 2, width), normal(seed + 1, 9, 2, width), normal(seed + 2, 9, 2, width)
    plain = KvCodec(KvFormat(32, KvScaling.NONE), ChannelConstants.identity(2, width))
    prepared_format = KvFormat(32, KvScaling.NONE, rotation=rotation)
    key, value = (KvCodec(prepared_format, random_constants(seed + at, 2, width)) for at in (10, 20))
    assert not torch.equal(key.encode(rows[1]).codes, plain.encode(rows[1]).codes)
    expected, found = attention_output(plain, plain, rows), attention_output(key, value, rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 4, 64, 128])
def test_hadamard_is_orthonormal_with_entries_of_equal_magnitude(size: int) -> None:
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size), rtol=0, atol=1e-5)
    torch.testing.assert_close(matrix.abs(), torch.full((size, size), size**-0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_per_channel_static_scales_spend_every_code_on_every_channel(bits: int) -> None:
    spec = TinyModel(windows=(None,)).spec()
    weights, kv_format = random_weights(spec), KvFormat(bits, KvScaling.STATIC, per_channel=True)
    constants = calibrated_constants(spec, weights, kv_format)

    def check(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        codec = KvCodec(kv_format, constants[layer].key)
        codes = codec.decode(codec.encode(key)) + constants[layer].key.zero
        assert not codes.amin(0).any()
        assert bool((codes.amax(0) == 2**bits - 1).all())
        checked.append(layer)

    checked: list[int] = []
    watch_attention(spec, weights, check)
    assert checked == [0]


@pytest.mark.parametrize("size", [3, 12, 80])
def test_hadamard_refuses_sizes_that_are_no_power_of_two(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        hadamard(size)


def test_rotation_lowers_the_error_of_vectors_with_an_outlier_channel() -> None:
    rows = normal(0, 64, 2, 64)
    rows[..., 5] *= 30.0
    errors = []
    for rotation in (False, True):
        codec = KvCodec(KvFormat(4, KvScaling.PER_TOKEN, rotation=rotation), ChannelConstants.identity(2, 64))
        errors.append(float((codec.decode(codec.encode(rows)) - codec.prepare(rows)).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_calibrated_constants_lower_the_error_of_int4_attention() -> None:
    offset = 4 * normal(1, 1, 2, 16)
    rows = normal(2, 6, 2, 2, 16), normal(3, 40, 2, 16) + offset, normal(4, 40, 2, 16) + offset
    plain = KvCodec(KvFormat(32, KvScaling.NONE), ChannelConstants.identity(2, 16))
    expected, kv_format = attention_output(plain, plain, rows), KvFormat(4, KvScaling.PER_TOKEN)
    errors = []
    for center in (torch.zeros(2, 16), offset[0]):
        codec = KvCodec(kv_format, ChannelConstants(center, torch.ones(2, 16)))
        errors.append(float((attention_output(codec, codec, rows) - expected).square().mean()))
    assert errors[1] < 0.3 * errors[0]
