"""`python -m exporter` is `slm-export`."""

from exporter.cli import main

main()
