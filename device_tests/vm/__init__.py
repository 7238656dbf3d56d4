"""An arm64 machine of Debian packages with the real adbd, for `--device arm64-vm`."""
