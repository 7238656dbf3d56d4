"""How much memory interpreters in float may take for speed."""

KEPT_BYTES = 3 << 28
"""Float32 copies of quantized matrices are kept up to this sum; the rest is dequantized anew for every product."""
