"""Measurements, side by side with peers in the same run: `python -m benchmarks --help`. Nothing here is a test."""
