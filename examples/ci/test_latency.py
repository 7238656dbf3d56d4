"""Budgets of a product as tests: copy, change the numbers, and run with

pytest -p device_tests.plugin --slm-export out --slm-device local test_latency.py
"""

from exporter.report.latency import Latency


def test_decode_budget(device_latency: Latency) -> None:
    assert device_latency.section["decode_ms"]["p50"] <= 100


def test_memory_budget(device_latency: Latency) -> None:
    assert device_latency.section["peak_rss_bytes"] <= 500e6
