"""Operators in C++ for ExecuTorch: attention over packed caches."""
