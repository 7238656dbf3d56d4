"""Measures exported models on devices: one protocol for runners of every engine, one for devices of every kind."""
