"""Kinds of devices, one file each; `base.py` is the protocol."""
