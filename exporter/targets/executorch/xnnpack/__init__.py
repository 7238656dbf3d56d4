"""ExecuTorch programs for CPUs through XNNPACK."""
