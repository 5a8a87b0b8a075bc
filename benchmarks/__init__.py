"""Measure what containers cost, against the host's own processes, other container tools, and a floor in plain C.

``python -m benchmarks --help``; docs/reference/benchmarks.md says how to read the figures.
"""
