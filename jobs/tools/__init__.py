"""Maintainers' tools: benchmarks, filter and score measurements, throughput table, GPU check.

Run them from a checkout (`python -m jobs.tools.<name>`, `jointdit bench`). They do not ship in the wheel.
"""
