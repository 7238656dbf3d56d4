"""Latent attention, once for all interpreters; see `latent`."""

from __future__ import annotations

from exporter.decoder.latent import ABSORB, EXPAND, LATENT, LATENT_EPS, QUERY, QUERY_DOWN, ROTARY_KEY, LatentSpec
from exporter.decoder.ops import Ops, Tensor
from exporter.decoder.spec import AttentionSpec, NormSpec

NORM = NormSpec(LATENT_EPS)


def latent_attention(
    ops: Ops[Tensor], attention: AttentionSpec, latent: LatentSpec, index: int, value: Tensor
) -> Tensor:
    """[S, D] -> [S, D]."""
    prefix, bias, heads = f"layers.{index}.attention", attention.query_key_value_bias, attention.query_heads
    source = value
    if latent.query_rank is not None:
        source = ops.rms_norm(ops.linear(value, f"{prefix}.{QUERY_DOWN}", bias), f"{prefix}.{QUERY_DOWN}_norm", NORM)
    query = ops.split_heads(ops.linear(source, f"{prefix}.{QUERY}", False), heads)
    query = ops.head_products(query, f"{prefix}.heads", ABSORB, latent.rotary, keep=True)
    compressed = ops.rms_norm(ops.linear(value, f"{prefix}.{LATENT}", bias), f"{prefix}.{LATENT}_norm", NORM)
    key = ops.split_heads(ops.join(ops.linear(value, f"{prefix}.{ROTARY_KEY}", bias), compressed), 1)
    assert attention.rotary is not None
    query, key = ops.rotary(query, attention.rotary), ops.rotary(key, attention.rotary)
    mixed = ops.split_heads(ops.attention(index, attention, query, key, key), heads)
    mixed = ops.head_products(mixed, f"{prefix}.heads", EXPAND, latent.rotary, keep=False)
    return ops.linear(ops.merge_heads(mixed), f"{prefix}.output", attention.output_bias)
